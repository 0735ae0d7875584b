"""Report page of a prepared dataset: contents, excluded clips with reasons, and samples to inspect.

    avdata.report("out/cremad")          # writes out/cremad/report.html

The page is one self-contained HTML file. `statistics` reads the index, `selection` selects samples, `gallery`
renders them, `charts` draws histograms, `comparison` compares two datasets, and `html` renders the templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.progress import Progress
from avdata.reporting.charts import Chart, band, histogram
from avdata.reporting.comparison import Comparison, compare_datasets
from avdata.reporting.statistics import DatasetStatistics, Histogram, collect_statistics

if TYPE_CHECKING:
    from avdata.reporting.gallery import SampleMeasurements

__all__ = ["report"]

NAME = "report.html"

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
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Write an HTML report of a prepared dataset.

    Memory use and page size are bounded: the index is streamed, and a bounded number of samples is read.

    Args:
        dataset: folder of the dataset.
        output: the HTML file (default: `report.html` in the dataset's folder).
        against: another prepared dataset to compare with.
        seed: seed of the selection of samples.
        progress: called with a stage (index, samples, verify, gallery), done and total.

    Returns:
        Path of the HTML file.

    Raises:
        AvdataError: a folder is not a prepared dataset, or the file cannot be written.
    """
    from avdata.reporting.html import render  # noqa: PLC0415
    from avdata.storage.atomic import atomic_write  # noqa: PLC0415

    root = Path(dataset)
    path = root / NAME if output is None else Path(output)
    context = collect_page_data(
        root, None if against is None else Path(against), seed=seed, progress=progress
    )
    atomic_write(path, render("dataset.html", **context).encode())
    return path


def collect_page_data(root: Path, other: Path | None, *, seed: int, progress: Progress) -> dict[str, Any]:
    """Return the variables of the page's template. The arguments are those of `report`."""
    from avdata.config.overrides import diff_settings  # noqa: PLC0415
    from avdata.config.schema import Config  # noqa: PLC0415
    from avdata.reporting.gallery import build_gallery, measure_samples  # noqa: PLC0415
    from avdata.shards.provenance import describe_verification  # noqa: PLC0415
    from avdata.shards.reader import read_info  # noqa: PLC0415

    info = read_info(root)
    other_info = None if other is None else read_info(other)
    progress("index", 0, 1)
    statistics = collect_statistics(root, seed=seed)
    progress("samples", 0, 1)
    measured = measure_samples(root, info, statistics.random_rows)
    check = _check(root, info, progress)
    progress("gallery", 0, 1)
    cards, unreadable = build_gallery(root, info, statistics.selected_rows)
    comparison = (
        None if other_info is None or other is None else compare_datasets(root, other, info, other_info)
    )
    progress("gallery", 1, 1)
    defaults = Config().model_dump(mode="json")
    return {
        "info": info,
        "verification": describe_verification(info["source"]),
        "root": str(root),
        "statistics": statistics,
        "bytes": sum(shard["bytes"] for split in info["splits"].values() for shard in split["shards"]),
        "created": _format_time(datetime.now(UTC)),
        "preparation": _preparation_times(root, info),
        "is_verified": check.is_complete,
        "problems": [*check.problems, *measured.problems, *unreadable],
        "measured": measured,
        "settings": _settings(info["config"]),
        "changed": {name for name, _, _ in diff_settings(defaults, info["config"])},
        "flags": _flags(info),
        "absent_labels": _absent_labels(info),
        "quarantine": _quarantine(root, info),
        "cards": cards,
        "charts": _charts(info, statistics, measured),
        "mel_chart": _mel_chart(info, other_info),
        "comparison": comparison,
        "against": None if other is None else str(other),
        "comparison_chart": _comparison_chart(comparison),
    }


def _check(root: Path, info: Mapping[str, Any], progress: Progress) -> DatasetCheck:
    """Verify a small dataset completely, and only the sizes of the shards of a large one."""
    from avdata.shards.verify import verify  # noqa: PLC0415

    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    if sum(shard["bytes"] for shard in shards) <= MAX_VERIFIED_BYTES:
        result = verify(root, progress=progress)
        return DatasetCheck(
            is_complete=True, problems=[f"{problem.where}: {problem.what}" for problem in result.problems]
        )
    problems = []
    for shard in shards:
        path = root / shard["path"]
        if not path.is_file():
            problems.append(f"{shard['path']}: is missing")
        elif (size := path.stat().st_size) != shard["bytes"]:
            problems.append(f"{shard['path']}: has {size:,} bytes, not {shard['bytes']:,}")
    return DatasetCheck(is_complete=False, problems=problems)


def _preparation_times(root: Path, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return when the dataset was prepared and how fast, from the modification times of its shards.

    dataset.json holds no times, so that equal preparations have equal bytes. If a copy did not keep the
    modification times, all are alike, and the rate is None.
    """
    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    times = sorted(
        ((root / shard["path"]).stat().st_mtime, shard["samples"])
        for shard in shards
        if (root / shard["path"]).is_file()
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


def _absent_labels(info: Mapping[str, Any]) -> list[str]:
    """Return the labels that train has no sample of."""
    counts = info["splits"].get("train", {"labels": {}})["labels"]
    return [label for label in info["labels"] if not counts.get(label)]


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
    from avdata.shards.reader import table_errors  # noqa: PLC0415

    path = root / "quarantine.parquet"
    rows: list[dict[str, Any]] = []
    with table_errors(path):
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(batch_size=MAX_QUARANTINED_ROWS):
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
    data = statistics.histograms
    if not data:
        return []
    is_partial = measured.samples < statistics.samples
    scope = f"of {measured.samples:,} random samples" if is_partial else "of all samples"
    title = f"Loudness {scope}" if measured.is_dbfs else f"Spectrogram mean {scope}"
    unit = "dBFS" if measured.is_dbfs or info["config"]["audio"]["log"] != "db" else "dB"
    charts = [
        histogram("Measured audio offset", "ms", data["offset"], scale=1000),
        histogram("Audio duration", "s", data["audio"]),
        histogram("Video duration", "s", data["video"]),
        histogram("Padding, fraction of the window", "%", data["padding"], scale=100),
        histogram(title, unit, _level_histogram(measured.loudness)) if len(measured.loudness) else None,
    ]
    return [chart for chart in charts if chart is not None]


def _level_histogram(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low - 0.5, high + 0.5, 31)
    return Histogram(edges, {"samples": np.histogram(values, edges)[0]})


def _mel_chart(info: Mapping[str, Any], other_info: Mapping[str, Any] | None) -> Chart | None:
    stats = info["mel_stats"]
    if stats is None:
        return None
    means = {"mean": stats["mean"]}
    other_stats = None if other_info is None else other_info["mel_stats"]
    if other_stats is not None and len(other_stats["mean"]) == len(stats["mean"]):
        means["mean of the other dataset"] = other_stats["mean"]
    return band("Spectrogram by band, train split", "band", means, stats["std"])


def _comparison_chart(comparison: Comparison | None) -> Chart | None:
    if comparison is None or comparison.offsets is None:
        return None
    return histogram("Change of measured offsets", "ms", comparison.offsets, scale=1000)
