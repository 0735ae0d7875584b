"""Statistics of a prepared dataset for its report, from two passes over the index.

Memory use does not grow with the dataset: the index is read in batches, and only ranges, counts and a bounded
number of rows are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import SampleFlag
from avdata.reporting.selection import SampleSelector, SelectedRow
from avdata.shards.reader import check_index, table_errors

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 65_536

BINS = 40

MAX_GROUPS = 50_000
"""Largest number of groups that are counted one by one. With more, the report has only the totals."""

MIN_OFFSET_RANGE, MIN_DURATION_RANGE = 0.02, 0.5
"""Smallest ranges of the axes, s, so that differences of microseconds do not fill a histogram."""

AAC_FRAME = 1024
"""Samples that AAC encoders put before the audio. A program that ignores the edit list keeps them."""

AAC_RATES_HZ = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)

MAX_AAC_OFFSET_ERROR = 1e-4
"""s by which an offset of one AAC frame may differ from it."""

MIN_AAC_SHARE = 0.05
"""Share of the measured offsets from which those of one AAC frame are reported. Random offsets have 1 %."""

TIMING_FLAGS = (SampleFlag.AV_MISMATCH, SampleFlag.AUDIO_TRUNCATED, SampleFlag.LOW_CORRELATION)
"""Flags of samples whose measured offset is unreliable."""

NUMBERS = ("av_offset", "duration_audio", "duration_video", "pad_fraction")


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width.

    Attributes:
        edges: float64 [n + 1], ascending.
        counts: int64 [n] by name of the series, stacked in this order.
    """

    edges: np.ndarray
    counts: Mapping[str, np.ndarray]

    @property
    def total(self) -> int:
        """Number of values in all series."""
        return int(sum(int(counts.sum()) for counts in self.counts.values()))


@dataclass
class DatasetStatistics:
    """Statistics of the index.

    Attributes:
        samples: number of rows.
        window_seconds: total length of the samples' windows by split, s.
        source_seconds: total length of their clips, s: of the video, else of the audio.
        histograms: `offset` (series reliable, flagged), `audio` and `video` (durations), `padding`.
        offset_median: s, or None if no offset was measured.
        aac_offsets: number of offsets of one AAC frame in either direction, by sample rate in Hz; only rates
            with at least `MIN_AAC_SHARE` of all offsets.
        largest_groups: largest group and its number of samples, by split. Empty with too many groups.
        selected_rows: rows for the gallery.
        random_rows: uniformly drawn rows, whose samples are read for what the index does not hold.
    """

    samples: int = 0
    window_seconds: dict[str, float] = field(default_factory=dict)
    source_seconds: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    offset_median: float | None = None
    aac_offsets: dict[int, int] = field(default_factory=dict)
    largest_groups: dict[str, tuple[str, int]] = field(default_factory=dict)
    selected_rows: Sequence[SelectedRow] = ()
    random_rows: Sequence[Mapping[str, Any]] = ()


def index_batches(root: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the index of a prepared dataset in batches of bounded size.

    Raises:
        AvdataError: the index is missing or cannot be read.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    path = root / "index.parquet"
    with table_errors(path):
        # Without a buffer size, pyarrow reads a complete column of a row group at once.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        for batch in file.iter_batches(BATCH, columns=list(columns) if columns else None, use_threads=False):
            check_index(batch, path, list(columns) if columns else None)
            yield batch


def collect_statistics(root: Path, *, seed: int = 0) -> DatasetStatistics:
    """Read the index twice: for ranges and selected rows, then for the histograms.

    Args:
        root: folder of the dataset.
        seed: seed of the selection of samples.

    Raises:
        AvdataError: the index cannot be read.
    """
    statistics = DatasetStatistics()
    ranges = dict.fromkeys(NUMBERS, (np.inf, -np.inf))
    selector, groups = SampleSelector(seed), _GroupCounter()
    for batch in index_batches(root):
        statistics.samples += batch.num_rows
        for name in NUMBERS:
            ranges[name] = _extended_range(ranges[name], _float_column(batch, name))
        _add_seconds(statistics, batch)
        groups.update(batch)
        selector.update(batch)
    statistics.largest_groups = groups.largest()
    statistics.selected_rows, statistics.random_rows = selector.selected_rows(), selector.random_rows()
    if statistics.samples:
        _fill_histograms(root, statistics, ranges)
    return statistics


def _add_seconds(statistics: DatasetStatistics, batch: pa.RecordBatch) -> None:
    splits = batch.column("split").dictionary_encode()
    windows = _float_column(batch, "window_end") - _float_column(batch, "window_start")
    totals = np.bincount(splits.indices.to_numpy(), windows, len(splits.dictionary))
    for split, total in zip(splits.dictionary.to_pylist(), totals.tolist(), strict=True):
        statistics.window_seconds[split] = statistics.window_seconds.get(split, 0.0) + total
    audio, video = _float_column(batch, "duration_audio"), _float_column(batch, "duration_video")
    statistics.source_seconds += float(np.nansum(np.where(np.isfinite(video), video, audio)))


def _extended_range(old: tuple[float, float], values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return old
    return min(old[0], float(finite.min())), max(old[1], float(finite.max()))


def _float_column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Return a column as float64, with nulls as NaN."""
    return batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)


def _fill_histograms(
    root: Path, statistics: DatasetStatistics, ranges: Mapping[str, tuple[float, float]]
) -> None:
    low, high = ranges["duration_audio"]
    duration_range = (min(low, ranges["duration_video"][0]), max(high, ranges["duration_video"][1]))
    offsets = _HistogramBuilder(_padded_range(ranges["av_offset"], MIN_OFFSET_RANGE), ("reliable", "flagged"))
    # 1000 bins give the median to a thousandth of the range, in constant memory.
    fine_offsets = _HistogramBuilder(ranges["av_offset"], ("all",), bins=1000)
    durations = {
        name: _HistogramBuilder(_padded_range(duration_range, MIN_DURATION_RANGE), (name,))
        for name in ("audio", "video")
    }
    padding = _HistogramBuilder((0.0, 1.0), ("samples",))
    aac_offsets = dict.fromkeys(AAC_RATES_HZ, 0)
    for batch in index_batches(root, [*NUMBERS, "flags"]):
        is_flagged, offset = _has_flag(batch, TIMING_FLAGS), _float_column(batch, "av_offset")
        offsets.add("reliable", offset[~is_flagged])
        offsets.add("flagged", offset[is_flagged])
        fine_offsets.add("all", offset)
        for rate in AAC_RATES_HZ:
            error = np.abs(np.abs(offset[np.isfinite(offset)]) - AAC_FRAME / rate)
            aac_offsets[rate] += int((error < MAX_AAC_OFFSET_ERROR).sum())
        for name, builder in durations.items():
            builder.add(name, _float_column(batch, f"duration_{name}"))
        padding.add("samples", _float_column(batch, "pad_fraction"))
    statistics.histograms = {"offset": offsets.build(), "padding": padding.build()}
    statistics.histograms |= {name: builder.build() for name, builder in durations.items()}
    fine_histogram = fine_offsets.build()
    statistics.offset_median = _median(fine_histogram)
    least = max(1.0, MIN_AAC_SHARE * fine_histogram.total)
    statistics.aac_offsets = {rate: count for rate, count in aac_offsets.items() if count >= least}


def _padded_range(limits: tuple[float, float], minimum: float) -> tuple[float, float]:
    """Return the range, extended on both sides to a minimum width and to round numbers."""
    if limits[0] > limits[1]:
        return limits
    padding = max(minimum - (limits[1] - limits[0]), 0.0) / 2
    return round_range(limits[0] - padding, limits[1] + padding)


def round_step(span: float, count: int) -> float:
    """Return the smallest of 1, 2, 5 · 10^n that divides a span into at most `count` parts.

    >>> round_step(2.3, 5)
    0.5
    """
    step = 10.0 ** math.floor(math.log10(span / count))
    return float(
        step * next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count * (1 + 1e-9))
    )


def round_range(low: float, high: float, count: int = 5) -> tuple[float, float]:
    """Return the range extended to multiples of its `round_step`, so that both ends are ticks.

    >>> round_range(0.4, 9.2)
    (0.0, 10.0)
    """
    while high > low:
        step = round_step(high - low, count)
        first, last = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        if round_step(last - first, count) <= step * (1 + 1e-9):
            return first, last
        low, high = first, last
    return low, high


def _has_flag(batch: pa.RecordBatch, flags: Sequence[str]) -> np.ndarray:
    """Return which rows have one of the flags, bool [n]."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    lists = batch.column("flags")
    matches = pc.is_in(pc.list_flatten(lists), value_set=pa.array([str(flag) for flag in flags]))
    mask = np.zeros(batch.num_rows, bool)
    mask[pc.list_parent_indices(lists).to_numpy()[matches.to_numpy(zero_copy_only=False)]] = True
    return mask


def _median(histogram: Histogram) -> float | None:
    if not histogram.total:
        return None
    bin_number = int(np.searchsorted(np.cumsum(histogram.counts["all"]), histogram.total / 2))
    return float((histogram.edges[bin_number] + histogram.edges[bin_number + 1]) / 2)


class _HistogramBuilder:
    """Histogram of a fixed range that is filled in batches."""

    def __init__(self, limits: tuple[float, float], series: Sequence[str], bins: int = BINS) -> None:
        low, high = limits if limits[0] <= limits[1] else (0.0, 1.0)
        # Equal values need bins of nonzero width.
        margin = 0.0 if high - low > 1e-9 else max(abs(high) * 0.05, 1e-3)
        self._edges = np.linspace(low - margin, high + margin, bins + 1)
        self._counts = {name: np.zeros(bins, np.int64) for name in series}

    def add(self, series: str, values: np.ndarray) -> None:
        self._counts[series] += np.histogram(values[np.isfinite(values)], self._edges)[0]

    def build(self) -> Histogram:
        return Histogram(self._edges, self._counts)


class _GroupCounter:
    """Number of samples by split and group, up to `MAX_GROUPS` groups."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] | None = {}

    def update(self, batch: pa.RecordBatch) -> None:
        if self._counts is None:
            return
        import pyarrow as pa  # noqa: PLC0415

        table = pa.Table.from_batches([batch]).select(["split", "group"])
        counts = table.group_by(["split", "group"]).aggregate([([], "count_all")])
        for row in counts.to_pylist():
            pair = (row["split"], row["group"])
            self._counts[pair] = self._counts.get(pair, 0) + row["count_all"]
        if len(self._counts) > MAX_GROUPS:
            self._counts = None

    def largest(self) -> dict[str, tuple[str, int]]:
        """Return the largest group and its number of samples, by split."""
        largest: dict[str, tuple[str, int]] = {}
        for (split, group), count in (self._counts or {}).items():
            if count > largest.get(split, ("", 0))[1]:
                largest[split] = (group, count)
        return largest
