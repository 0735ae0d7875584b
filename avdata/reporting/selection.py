"""Selection of the samples that a report shows: flagged ones, extremes, and some of each label, by a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]

ROWS_PER_LABEL = 2
"""Samples of each label in each split."""

ROWS_PER_FLAG = 12

ROWS_PER_EXTREME = 2

RANDOM_ROWS = 256
"""Samples read for what the index does not hold: loudness and frame rates."""

MAX_LABEL_GROUPS = 4_096
"""Largest number of pairs of label and split from which samples are selected."""

EXTREME_COLUMNS = {
    "latest audio": ("av_offset", 1.0),
    "earliest audio": ("av_offset", -1.0),
    "longest audio": ("duration_audio", 1.0),
    "shortest audio": ("duration_audio", -1.0),
    "most padding": ("pad_fraction", 1.0),
    "lowest correlation": ("av_peak", -1.0),
}
"""Extremes: column, and 1 for its largest or -1 for its smallest values."""


@dataclass(frozen=True)
class SelectedRow:
    """Row of the index with the reasons of its selection."""

    row: Row
    reasons: tuple[str, ...]


class _LowestScores:
    """Collector of the `count` rows with the lowest scores."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._entries: list[tuple[float, int, Row]] = []

    def update(self, scores: np.ndarray, batch: pa.RecordBatch, rows: np.ndarray, first: int) -> None:
        """Add rows of a batch with one score each. `first` is the index of the batch's first row."""
        limit = self._entries[-1][0] if len(self._entries) == self.count else np.inf
        lower = np.flatnonzero(scores < limit)
        lower = lower[np.argsort(scores[lower], kind="stable")[: self.count]]
        for position in lower:
            number = int(rows[position])
            row = batch.slice(number, 1).to_pylist()[0]
            self._entries.append((float(scores[position]), first + number, row))
        self._entries.sort(key=lambda entry: entry[:2])
        del self._entries[self.count :]

    @property
    def rows(self) -> list[Row]:
        return [row for _, _, row in self._entries]


class SampleSelector:
    """Selector of rows from an index that is read in batches."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._rows_read = 0
        self._by_label: dict[tuple[str, str], _LowestScores] = {}
        self._by_flag: dict[str, _LowestScores] = {}
        self._extremes = {name: _LowestScores(ROWS_PER_EXTREME) for name in EXTREME_COLUMNS}
        self._random = _LowestScores(RANDOM_ROWS)

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the next rows of the index."""
        scores, all_rows = self._rng.random(batch.num_rows), np.arange(batch.num_rows)
        self._random.update(scores, batch, all_rows, self._rows_read)
        for name, (column, sign) in EXTREME_COLUMNS.items():
            values = batch.column(column).to_numpy(zero_copy_only=False).astype(np.float64)
            finite = np.flatnonzero(np.isfinite(values))
            self._extremes[name].update(-sign * values[finite], batch, finite, self._rows_read)
        self._update_labels(batch, scores)
        self._update_flags(batch, scores)
        self._rows_read += batch.num_rows

    def _update_labels(self, batch: pa.RecordBatch, scores: np.ndarray) -> None:
        labels = batch.column("label_name").dictionary_encode()
        splits = batch.column("split").dictionary_encode()
        num_splits = len(splits.dictionary)
        pair_codes = labels.indices.to_numpy().astype(np.int64) * num_splits + splits.indices.to_numpy()
        order = np.lexsort((scores, pair_codes))
        starts = np.flatnonzero(np.diff(pair_codes[order], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            rows = order[start : min(start + ROWS_PER_LABEL, end)]
            label, split = divmod(int(pair_codes[rows[0]]), num_splits)
            pair = (labels.dictionary[label].as_py(), splits.dictionary[split].as_py())
            if pair in self._by_label or len(self._by_label) < MAX_LABEL_GROUPS:
                collector = self._by_label.setdefault(pair, _LowestScores(ROWS_PER_LABEL))
                collector.update(scores[rows], batch, rows, self._rows_read)

    def _update_flags(self, batch: pa.RecordBatch, scores: np.ndarray) -> None:
        import pyarrow.compute as pc  # noqa: PLC0415

        lists = batch.column("flags")
        parents = pc.list_parent_indices(lists).to_numpy()
        flat = pc.list_flatten(lists).dictionary_encode()
        codes = flat.indices.to_numpy()
        for code, flag in enumerate(flat.dictionary.to_pylist()):
            rows = parents[codes == code]
            collector = self._by_flag.setdefault(flag, _LowestScores(ROWS_PER_FLAG))
            collector.update(scores[rows], batch, rows, self._rows_read)

    def selected_rows(self) -> list[SelectedRow]:
        """Return the rows for the gallery, each once with all its reasons.

        The order is flagged rows, extremes, the first row of each label and split, then the second.
        """
        selected: dict[str, tuple[Row, list[str]]] = {}
        for flag in sorted(self._by_flag):
            _add_reason(selected, self._by_flag[flag].rows, "flagged")
        for name, collector in self._extremes.items():
            _add_reason(selected, collector.rows, name)
        for depth in range(ROWS_PER_LABEL):
            for pair in sorted(self._by_label):
                _add_reason(selected, self._by_label[pair].rows[depth : depth + 1], "example of its label")
        return [SelectedRow(row, tuple(reasons)) for row, reasons in selected.values()]

    def random_rows(self) -> list[Row]:
        """Return rows drawn uniformly from the index."""
        return self._random.rows


def _add_reason(selected: dict[str, tuple[Row, list[str]]], rows: Sequence[Row], reason: str) -> None:
    for row in rows:
        reasons = selected.setdefault(row["key"], (row, []))[1]
        if reason not in reasons:
            reasons.append(reason)
