"""Which samples a report shows: some of each label, the flagged ones, the extremes; few, and by a seed."""

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
"""Samples opened for what the index does not tell: loudness and frame rates."""

MAX_LABEL_GROUPS = 4_096
"""Labels times splits that are told apart."""

EXTREME_COLUMNS = {
    "latest sound": ("av_offset", 1.0),
    "earliest sound": ("av_offset", -1.0),
    "longest sound": ("duration_audio", 1.0),
    "shortest sound": ("duration_audio", -1.0),
    "most padding": ("pad_fraction", 1.0),
    "lowest correlation": ("av_peak", -1.0),
}
"""The extremes: a column, and whether the largest or the smallest is meant."""


@dataclass(frozen=True)
class SelectedRow:
    """A row of the index, and why it was picked."""

    row: Row
    why: tuple[str, ...]


class _Best:
    """The `count` rows of the smallest score seen so far."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.held: list[tuple[float, int, Row]] = []

    def update(self, scores: np.ndarray, batch: pa.RecordBatch, rows: np.ndarray, first: int) -> None:
        """Offer rows of a batch, `scores` one each; `first` is the number of the batch's first row."""
        worst = self.held[-1][0] if len(self.held) == self.count else np.inf
        good = np.flatnonzero(scores < worst)
        good = good[np.argsort(scores[good], kind="stable")[: self.count]]
        for place in good:
            number = int(rows[place])
            row = batch.slice(number, 1).to_pylist()[0]
            self.held.append((float(scores[place]), first + number, row))
        self.held.sort(key=lambda held: held[:2])
        del self.held[self.count :]

    @property
    def rows(self) -> list[Row]:
        return [row for _, _, row in self.held]


class SampleSelector:
    """Chooses rows from an index that passes by in batches."""

    def __init__(self, seed: int) -> None:
        self._dice = np.random.default_rng(seed)
        self._seen = 0
        self._groups: dict[tuple[str, str], _Best] = {}
        self._flags: dict[str, _Best] = {}
        self._extremes = {name: _Best(ROWS_PER_EXTREME) for name in EXTREME_COLUMNS}
        self._drawn = _Best(RANDOM_ROWS)

    def update(self, batch: pa.RecordBatch) -> None:
        """Look at the next rows of the index."""
        drawn, everyone = self._dice.random(batch.num_rows), np.arange(batch.num_rows)
        self._drawn.update(drawn, batch, everyone, self._seen)
        for name, (column, sign) in EXTREME_COLUMNS.items():
            values = batch.column(column).to_numpy(zero_copy_only=False).astype(np.float64)
            known = np.flatnonzero(np.isfinite(values))
            self._extremes[name].update(-sign * values[known], batch, known, self._seen)
        self._update_labels(batch, drawn)
        self._update_flags(batch, drawn)
        self._seen += batch.num_rows

    def _update_labels(self, batch: pa.RecordBatch, drawn: np.ndarray) -> None:
        labels = batch.column("label_name").dictionary_encode()
        splits = batch.column("split").dictionary_encode()
        width = len(splits.dictionary)
        shelf = labels.indices.to_numpy().astype(np.int64) * width + splits.indices.to_numpy()
        order = np.lexsort((drawn, shelf))
        starts = np.flatnonzero(np.diff(shelf[order], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            rows = order[start : min(start + ROWS_PER_LABEL, end)]
            label, split = divmod(int(shelf[rows[0]]), width)
            pair = (labels.dictionary[label].as_py(), splits.dictionary[split].as_py())
            if pair in self._groups or len(self._groups) < MAX_LABEL_GROUPS:
                best = self._groups.setdefault(pair, _Best(ROWS_PER_LABEL))
                best.update(drawn[rows], batch, rows, self._seen)

    def _update_flags(self, batch: pa.RecordBatch, drawn: np.ndarray) -> None:
        import pyarrow.compute as pc  # noqa: PLC0415

        lists = batch.column("flags")
        parents = pc.list_parent_indices(lists).to_numpy()
        flat = pc.list_flatten(lists).dictionary_encode()
        codes = flat.indices.to_numpy()
        for code, flag in enumerate(flat.dictionary.to_pylist()):
            rows = parents[codes == code]
            self._flags.setdefault(flag, _Best(ROWS_PER_FLAG)).update(drawn[rows], batch, rows, self._seen)

    def selected_rows(self) -> list[SelectedRow]:
        """The rows for the gallery, most telling first, each once with all its reasons.

        The flagged and the extremes come first; then a first sample of each label and split, then a second.
        """
        found: dict[str, tuple[Row, list[str]]] = {}
        for flag in sorted(self._flags):
            _note(found, self._flags[flag].rows, "flagged")
        for name, best in self._extremes.items():
            _note(found, best.rows, name)
        for depth in range(ROWS_PER_LABEL):
            for pair in sorted(self._groups):
                _note(found, self._groups[pair].rows[depth : depth + 1], "of its label")
        return [SelectedRow(row, tuple(why)) for row, why in found.values()]

    def random_rows(self) -> list[Row]:
        """Rows drawn evenly from the whole index."""
        return self._drawn.rows


def _note(found: dict[str, tuple[Row, list[str]]], rows: Sequence[Row], why: str) -> None:
    for row in rows:
        reasons = found.setdefault(row["key"], (row, []))[1]
        if why not in reasons:
            reasons.append(why)
