"""What a report says of a whole set: from dataset.json and two streams over the index.

Memory does not grow with the set: the index is read batch by batch, and only ranges, counts and a bounded
number of rows are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import SampleFlag
from avdata.reporting.selection import SampleSelector, SelectedRow
from avdata.shards.reader import table_errors

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 65_536

BINS = 40

MAX_GROUPS = 50_000
"""Groups counted one by one; of more, only dataset.json's totals are told."""

MIN_OFFSET_RANGE, MIN_DURATION_RANGE = 0.02, 0.5
"""Shortest axes, s: a histogram of offsets that differ by microseconds would look like news."""

TIMING_FLAGS = (SampleFlag.AV_MISMATCH, SampleFlag.AUDIO_TRUNCATED, SampleFlag.LOW_CORRELATION)
"""The flags that make a measured offset doubtful."""

NUMBERS = ("av_offset", "duration_audio", "duration_video", "pad_fraction")


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins.

    Attributes:
        edges: float64 [n + 1], ascending.
        counts: int64 [n] by the name of each series, stacked in this order.
    """

    edges: np.ndarray
    counts: Mapping[str, np.ndarray]

    @property
    def total(self) -> int:
        """Values in all series."""
        return int(sum(int(held.sum()) for held in self.counts.values()))


@dataclass
class DatasetStatistics:
    """What the index holds.

    Attributes:
        samples: rows.
        histograms: of av_offset (believed, flagged), durations of sound and of picture, and pad_fraction.
        offset_median: s; None where no offset was measured.
        largest_groups: by split, the group with most samples and how many; empty where groups are too many.
        picks: the rows for the gallery.
        drawn: rows drawn evenly, to be opened for what the index does not tell.
    """

    samples: int = 0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    offset_median: float | None = None
    largest_groups: dict[str, tuple[str, int]] = field(default_factory=dict)
    picks: Sequence[SelectedRow] = ()
    drawn: Sequence[Mapping[str, Any]] = ()


def index_batches(root: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The index of a prepared set, a bounded number of rows at a time.

    Raises:
        AvdataError: it is missing or cannot be read.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    path = root / "index.parquet"
    with table_errors(path):
        # Without a buffer size, a whole column of a row group is fetched at once.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        yield from file.iter_batches(BATCH, columns=list(columns) if columns else None, use_threads=False)


def collect_statistics(root: Path, *, seed: int = 0) -> DatasetStatistics:
    """Read the index of a set twice: for ranges and the gallery's rows, then for the histograms.

    Args:
        root: the set's folder.
        seed: of the choice of samples.

    Raises:
        AvdataError: the index cannot be read.
    """
    facts = DatasetStatistics()
    ranges = dict.fromkeys(NUMBERS, (np.inf, -np.inf))
    chooser, groups = SampleSelector(seed), _Groups()
    for batch in index_batches(root):
        facts.samples += batch.num_rows
        for name in NUMBERS:
            ranges[name] = _widened(ranges[name], _numbers(batch, name))
        groups.add(batch)
        chooser.update(batch)
    facts.largest_groups = groups.largest()
    facts.picks, facts.drawn = chooser.selected_rows(), chooser.random_rows()
    if facts.samples:
        _fill_histograms(root, facts, ranges)
    return facts


def _widened(old: tuple[float, float], values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return old
    return min(old[0], float(known.min())), max(old[1], float(known.max()))


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column as float64, nulls as NaN."""
    return batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)


def _fill_histograms(root: Path, facts: DatasetStatistics, ranges: Mapping[str, tuple[float, float]]) -> None:
    low, high = ranges["duration_audio"]
    seconds = (min(low, ranges["duration_video"][0]), max(high, ranges["duration_video"][1]))
    offsets = _Bins(_widen_to(ranges["av_offset"], MIN_OFFSET_RANGE), ("believed", "flagged"))
    # The median of a million offsets, to a thousandth of their range, needs a thousand counters.
    fine = _Bins(ranges["av_offset"], ("all",), bins=1000)
    durations = {
        name: _Bins(_widen_to(seconds, MIN_DURATION_RANGE), (name,)) for name in ("sound", "picture")
    }
    pads = _Bins((0.0, 1.0), ("samples",))
    for batch in index_batches(root, [*NUMBERS, "flags"]):
        doubtful, offset = flagged(batch, TIMING_FLAGS), _numbers(batch, "av_offset")
        offsets.add("believed", offset[~doubtful])
        offsets.add("flagged", offset[doubtful])
        fine.add("all", offset)
        durations["sound"].add("sound", _numbers(batch, "duration_audio"))
        durations["picture"].add("picture", _numbers(batch, "duration_video"))
        pads.add("samples", _numbers(batch, "pad_fraction"))
    facts.histograms = {"offset": offsets.done(), "pad": pads.done()}
    facts.histograms |= {name: bins.done() for name, bins in durations.items()}
    facts.offset_median = _median(fine.done())


def _widen_to(span: tuple[float, float], least: float) -> tuple[float, float]:
    """The span, widened on both sides to a length at which differences mean something."""
    short = max(least - (span[1] - span[0]), 0.0) / 2
    return (span[0] - short, span[1] + short) if span[0] <= span[1] else span


def flagged(batch: pa.RecordBatch, flags: Sequence[str] | None = None) -> np.ndarray:
    """Which rows carry one of the flags (None: any flag), bool [n]."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    lists = batch.column("flags")
    mask = np.zeros(batch.num_rows, bool)
    parents = pc.list_parent_indices(lists).to_numpy()
    if flags is not None:
        wanted = pc.is_in(pc.list_flatten(lists), value_set=pa.array([str(flag) for flag in flags]))
        parents = parents[wanted.to_numpy(zero_copy_only=False)]
    mask[parents] = True
    return mask


def _median(fine: Histogram) -> float | None:
    if not fine.total:
        return None
    reached = int(np.searchsorted(np.cumsum(fine.counts["all"]), fine.total / 2))
    return float((fine.edges[reached] + fine.edges[reached + 1]) / 2)


class _Bins:
    """A histogram in the making, of a range that is known."""

    def __init__(self, span: tuple[float, float], series: Sequence[str], bins: int = BINS) -> None:
        low, high = span if span[0] <= span[1] else (0.0, 1.0)
        # Values that are all alike still want a bin of some width.
        margin = 0.0 if high - low > 1e-9 else max(abs(high) * 0.05, 1e-3)
        self.edges = np.linspace(low - margin, high + margin, bins + 1)
        self.counts = {name: np.zeros(bins, np.int64) for name in series}

    def add(self, series: str, values: np.ndarray) -> None:
        self.counts[series] += np.histogram(values[np.isfinite(values)], self.edges)[0]

    def done(self) -> Histogram:
        return Histogram(self.edges, self.counts)


class _Groups:
    """Samples of each group by split, as long as the groups are few enough to be kept."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] | None = {}

    def add(self, batch: pa.RecordBatch) -> None:
        if self.counts is None:
            return
        import pyarrow as pa  # noqa: PLC0415

        table = pa.Table.from_batches([batch]).select(["split", "group"])
        counted = table.group_by(["split", "group"]).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            pair = (row["split"], row["group"])
            self.counts[pair] = self.counts.get(pair, 0) + row["count_all"]
        if len(self.counts) > MAX_GROUPS:
            self.counts = None

    def largest(self) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for (split, group), count in (self.counts or {}).items():
            if count > found.get(split, ("", 0))[1]:
                found[split] = (group, count)
        return found
