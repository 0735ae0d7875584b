"""Report page of a prepared dataset: contents, excluded clips with reasons, and samples to inspect.

    avdata.report("out/cremad")          # writes out/cremad/report.html

The page is one self-contained HTML file. `statistics` reads the index, `selection` selects samples, `gallery`
renders them, `charts` draws histograms, `comparison` compares two datasets, and `html` renders the templates.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.progress import Progress
from avdata.reporting.charts import Chart, Tick, band, histogram
from avdata.reporting.comparison import Comparison, compare_datasets
from avdata.reporting.statistics import (
    TIMING_FLAGS,
    DatasetStatistics,
    Histogram,
    collect_statistics,
    round_range,
)
from avdata.shards.dataset_files import DatasetFiles, RemoteDataset, open_dataset_files
from avdata.storage.paths import local_path

if TYPE_CHECKING:
    from avdata.reporting.gallery import SampleMeasurements

__all__ = ["report"]

NAME = "report.html"

FIRST_CARDS = 12
"""Cards of the gallery that are visible at first; a button shows more."""

MAX_QUARANTINED_ROWS = 2_000
"""Largest number of rows of the quarantine table. Its counts by reason always cover all clips."""

MAX_VERIFIED_BYTES = 256_000_000
"""Datasets up to this size are verified completely by the report."""


@dataclass(frozen=True)
class DatasetCheck:
    """Result of checking the dataset for its report.

    Attributes:
        is_complete: whether every byte was verified, not only the sizes of the shards.
        problems: one line per problem.
    """

    is_complete: bool
    problems: list[str]


def report(
    dataset: str | Path,
    output: str | Path | None = None,
    *,
    against: str | Path | None = None,
    source: str | Path | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Write an HTML report of a prepared dataset.

    Memory use and page size are bounded: the index is streamed, and a bounded number of samples is read.

    Args:
        dataset: folder or URL of the dataset.
        output: the HTML file (default: `report.html` in the dataset's folder; for a URL, in the current one).
        against: another prepared dataset to compare with.
        source: folder of the source files, from which the gallery has audio if the dataset stores none
            (default: the folder of `avdata download`).
        seed: seed of the selection of samples.
        progress: called with a stage (index, samples, verify, gallery), done and total.

    Returns:
        Path of the HTML file.

    Raises:
        AvdataError: a folder is not a prepared dataset, or the file cannot be written.
    """
    from avdata.reporting.html import render  # noqa: PLC0415
    from avdata.storage.atomic import atomic_write, remove_stale_parts  # noqa: PLC0415

    files = open_dataset_files(dataset, "index.parquet", "quarantine.parquet")
    folder = Path() if isinstance(files, RemoteDataset) else files.root
    path = folder / NAME if output is None else local_path(output)
    remove_stale_parts(path.parent, glob.escape(path.name))
    context = collect_page_data(
        files,
        None if against is None else open_dataset_files(against, "index.parquet"),
        source=None if source is None else Path(source),
        seed=seed,
        progress=progress,
    )
    atomic_write(path, render("dataset.html", **context).encode())
    return path


def collect_page_data(
    files: DatasetFiles, other: DatasetFiles | None, *, source: Path | None, seed: int, progress: Progress
) -> dict[str, Any]:
    """Return the variables of the page's template.

    Args:
        files: files of the dataset.
        other: those of the dataset to compare with, or None.
        source: see `report`.
        seed: see `report`.
        progress: see `report`.
    """
    from avdata.reporting.gallery import build_gallery, measure_samples  # noqa: PLC0415
    from avdata.reporting.key_list import list_keys  # noqa: PLC0415
    from avdata.reporting.overview import collect_overview, describe_rate  # noqa: PLC0415
    from avdata.reporting.spectrogram_axes import color_scale, frequency_ticks  # noqa: PLC0415

    info = files.info
    other_info = None if other is None else other.info
    folder = _source_folder(info, source)
    progress("index", 0, 1)
    statistics = collect_statistics(files.root, seed=seed)
    progress("samples", 0, 1)
    measured = measure_samples(files, info, statistics.random_rows)
    colors = color_scale(measured.levels, info["config"]["audio"])
    check = _check(files, info, progress)
    progress("gallery", 0, 1)
    limits = None if colors is None else (colors.low, colors.high)
    cards, unreadable = build_gallery(files, info, statistics.selected_rows, limits=limits, source=folder)
    comparison = None if other is None else compare_datasets(files, other)
    progress("gallery", 1, 1)
    frequencies = frequency_ticks(info["config"]["audio"], info["shape"]["mel"][1])
    return {
        **_facts(files, info),
        "overview": collect_overview(files.name, info, statistics),
        "statistics": statistics,
        "is_verified": check.is_complete,
        "problems": [*check.problems, *measured.problems, *unreadable],
        "measured": measured,
        "frame_rates": describe_rate(measured.fps),
        "cards": cards,
        "first_cards": FIRST_CARDS,
        "other_keys": list_keys(files.root, {card.row["key"] for card in cards}),
        "colors": colors,
        "frequencies": frequencies,
        "charts": _charts(info, statistics, measured),
        "mel_chart": _mel_chart(info, other_info, frequencies),
        "timing_flags": [str(flag) for flag in TIMING_FLAGS],
        "comparison": comparison,
        "against": None if other is None else other.name,
        "comparison_chart": _comparison_chart(comparison),
    }


def _facts(files: DatasetFiles, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that need no statistics."""
    from avdata.shards.provenance import describe_verification  # noqa: PLC0415

    splits = info["splits"].values()
    return {
        "info": info,
        "root": files.name,
        "verification": describe_verification(info["source"]),
        "bytes": sum(shard["bytes"] for split in splits for shard in split["shards"]),
        "created": _format_time(datetime.now(UTC)),
        "preparation": _preparation_times(files, info),
        "settings": _settings(info["config"]),
        "descriptions": _descriptions(),
        "flags": _flags(info),
        "largest_count": max((count for split in splits for count in split["labels"].values()), default=0),
        "quarantine": _quarantine(files.root, info),
    }


def _source_folder(info: Mapping[str, Any], source: Path | None) -> Path | None:
    """Return the folder of the source files: the given one, or that of `avdata download` if it exists."""
    from avdata.errors import UsageError  # noqa: PLC0415
    from avdata.storage.paths import source_dir  # noqa: PLC0415

    if source is not None and not source.is_dir():
        msg = f"Source {source} is not a folder."
        raise UsageError(msg, hint="Use --source with the folder of the dataset's files.")
    if source is not None:
        return source
    try:
        downloaded = source_dir(info["name"])
    except UsageError:
        return None
    return downloaded if downloaded.is_dir() else None


def _check(files: DatasetFiles, info: Mapping[str, Any], progress: Progress) -> DatasetCheck:
    """Verify a small dataset completely, and only the sizes of the shards of a large one."""
    from avdata.shards.verify import verify_dataset  # noqa: PLC0415

    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    if sum(shard["bytes"] for shard in shards) <= MAX_VERIFIED_BYTES:
        result = verify_dataset(files, progress=progress)
        return DatasetCheck(
            is_complete=True, problems=[f"{problem.where}: {problem.what}" for problem in result.problems]
        )
    problems = []
    stored = files.shard_facts()
    if stored is None:
        return DatasetCheck(is_complete=False, problems=[])
    for shard in shards:
        if shard["path"] not in stored:
            problems.append(f"{shard['path']}: is missing")
        elif (size := stored[shard["path"]].bytes) != shard["bytes"]:
            problems.append(f"{shard['path']}: has {size:,} bytes, not {shard['bytes']:,}")
    return DatasetCheck(is_complete=False, problems=problems)


def _preparation_times(files: DatasetFiles, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return when the dataset was prepared and how fast, from the modification times of its shards.

    dataset.json holds no times, so that equal preparations have equal bytes. If a copy did not keep the
    modification times, all are alike, and the rate is None.
    """
    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    stored = files.shard_facts() or {}
    times = sorted(
        (facts.modified, shard["samples"])
        for shard in shards
        if (facts := stored.get(shard["path"])) and facts.modified is not None
    )
    if not times:
        return None
    seconds = times[-1][0] - times[0][0]
    samples = sum(samples for _, samples in times[1:])
    return {
        "finished": _format_time(datetime.fromtimestamp(times[-1][0], UTC)),
        "rate": samples / seconds if seconds > 1 else None,
    }


def _format_time(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")


def _settings(config: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    return [
        (f"{section}.{name}", value) for section, values in config.items() for name, value in values.items()
    ]


def _descriptions() -> dict[str, str]:
    """Return the description of each setting, with its unit."""
    from avdata.config.schema import Config  # noqa: PLC0415

    return {
        f"{section}.{name}": setting.description or ""
        for section, group in Config()
        for name, setting in type(group).model_fields.items()
    }


def _flags(info: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    from avdata.errors import SampleFlag  # noqa: PLC0415

    known = set(SampleFlag)
    unknown = "a flag unknown to this version of avdata"
    return [
        (name, samples, SampleFlag(name).description if name in known else unknown)
        for name, samples in info["flags"].items()
    ]


def _quarantine(root: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    from avdata.reporting.remedies import meaning, remedy  # noqa: PLC0415
    from avdata.shards.reader import check_quarantine, table_errors  # noqa: PLC0415

    path = root / "quarantine.parquet"
    rows: list[dict[str, Any]] = []
    with table_errors(path):
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(batch_size=MAX_QUARANTINED_ROWS):
            check_quarantine(batch, path)
            rows += batch.slice(0, MAX_QUARANTINED_ROWS - len(rows)).to_pylist()
            if len(rows) == MAX_QUARANTINED_ROWS:
                break
    return {
        "rows": rows,
        "total": file.metadata.num_rows,
        "reasons": {name: (meaning(name), remedy(name)) for name in info["quarantine"]},
    }


def _charts(
    info: Mapping[str, Any], statistics: DatasetStatistics, measured: SampleMeasurements
) -> list[Chart]:
    from avdata.reporting.spectrogram_axes import value_unit  # noqa: PLC0415

    data = statistics.histograms
    if not data:
        return []
    is_partial = measured.samples < statistics.samples
    scope = f"of {measured.samples:,} random samples" if is_partial else "of all samples"
    title = f"Loudness {scope}" if measured.is_dbfs else f"Mean of the spectrogram {scope}"
    level = "RMS level (dBFS)" if measured.is_dbfs else f"mean ({value_unit(info['config']['audio'])})"
    charts = [
        histogram("Audio offset", "offset (ms), positive if the audio is late", data["offset"], scale=1000),
        histogram("Audio duration", "duration (s)", data["audio"]),
        histogram("Video duration", "duration (s)", data["video"]),
        histogram("Padding", "share of the window (%)", data["padding"], scale=100),
        histogram(title, level, _level_histogram(measured.loudness)) if len(measured.loudness) else None,
    ]
    return [chart for chart in charts if chart is not None]


def _level_histogram(values: np.ndarray) -> Histogram:
    low, high = round_range(float(values.min()) - 0.5, float(values.max()) + 0.5)
    edges = np.linspace(low, high, 31)
    return Histogram(edges, {"samples": np.histogram(values, edges)[0]})


def _mel_chart(
    info: Mapping[str, Any], other_info: Mapping[str, Any] | None, frequencies: Sequence[Tick]
) -> Chart | None:
    from avdata.reporting.spectrogram_axes import value_unit  # noqa: PLC0415

    stats = info["mel_stats"]
    if stats is None:
        return None
    means = {"mean": stats["mean"]}
    other_stats = None if other_info is None else other_info["mel_stats"]
    if other_stats is not None and len(other_stats["mean"]) == len(stats["mean"]):
        means["mean of the other dataset"] = other_stats["mean"]
    axes = ("frequency (Hz)", value_unit(info["config"]["audio"]))
    return band("Spectrogram of the train split", axes, means, stats["std"], frequencies)


def _comparison_chart(comparison: Comparison | None) -> Chart | None:
    if comparison is None or comparison.offsets is None:
        return None
    return histogram("Change of the offset, B − A", "change (ms)", comparison.offsets, scale=1000)
