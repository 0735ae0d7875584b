"""A prepared set as one page for people: what it holds, what was left out and why, and samples to look at.

    avdata.report("out/cremad")          # writes out/cremad/report.html

The page needs no network and no server. `facts` streams the index, `choose` picks samples, `gallery` makes
pictures of them, `charts` the drawings, `compare_datasets` sets two preparations side by side, `page`
renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from avdata.progress import Progress
from avdata.reporting.charts import Chart, band, histogram
from avdata.reporting.comparison import Comparison, compare_datasets
from avdata.reporting.statistics import DatasetStatistics, Histogram, collect_statistics

__all__ = ["report"]

NAME = "report.html"

MAX_QUARANTINED_ROWS = 2_000
"""Rows of the quarantine table; its counts by reason are always whole."""

MAX_VERIFIED_BYTES = 256_000_000
"""Sets up to this size are verified whole while the report is made."""


def report(
    dataset: str | Path,
    output: str | Path | None = None,
    *,
    against: str | Path | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Write a page that shows a prepared set to a person.

    Memory and size are bounded: the index is streamed, and a bounded number of samples is opened.

    Args:
        dataset: the set's folder.
        output: the HTML file; `report.html` in the set's folder without.
        against: another prepared set, to show what differs.
        seed: of the choice of samples.
        progress: called with a stage (index, samples, verify, gallery), done and total.

    Returns:
        The page.

    Raises:
        AvdataError: a folder is not a prepared set, or the page cannot be written.
    """
    from avdata.reporting.html import render  # noqa: PLC0415
    from avdata.storage.atomic import atomic_write  # noqa: PLC0415

    root = Path(dataset)
    path = root / NAME if output is None else Path(output)
    context = collect_page_data(
        root, None if against is None else Path(against), seed=seed, progress=progress
    )
    atomic_write(path, render("set.html", **context).encode())
    return path


def collect_page_data(root: Path, other: Path | None, *, seed: int, progress: Progress) -> dict[str, Any]:
    """Everything the page shows, as its template wants it. The arguments are those of `report`."""
    from avdata.config.overrides import diff_settings  # noqa: PLC0415
    from avdata.config.schema import Config  # noqa: PLC0415
    from avdata.reporting.gallery import build_gallery, open_drawn  # noqa: PLC0415
    from avdata.shards.reader import read_info  # noqa: PLC0415

    info = read_info(root)
    against = None if other is None else read_info(other)
    progress("index", 0, 1)
    facts = collect_statistics(root, seed=seed)
    progress("samples", 0, 1)
    opened = open_drawn(root, info, facts.drawn)
    checked = _check(root, info, progress)
    progress("gallery", 0, 1)
    cards, unread = build_gallery(root, info, facts.picks)
    comparison = None if against is None or other is None else compare_datasets(root, other, info, against)
    progress("gallery", 1, 1)
    defaults = Config().model_dump(mode="json")
    return {
        "info": info,
        "facts": facts,
        "bytes": sum(shard["bytes"] for split in info["splits"].values() for shard in split["shards"]),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "pace": _throughput(root, info),
        "checked": checked,
        "problems": [*opened.problems, *unread],
        "opened": opened,
        "settings": _settings(info["config"]),
        "changed": {name for name, _, _ in diff_settings(defaults, info["config"])},
        "flags": _flags(info),
        "quarantine": _quarantine(root, info),
        "cards": cards,
        "charts": _charts(info, facts, opened),
        "mel_chart": _mel_chart(info, against),
        "comparison": comparison,
        "against": None if other is None else str(other),
        "comparison_chart": _comparison_chart(comparison),
        "where": str(root),
    }


def _check(root: Path, info: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Whether the set is as written: all of a small one, the shards' sizes of a large one."""
    from avdata.shards.verify import verify  # noqa: PLC0415

    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    if sum(shard["bytes"] for shard in shards) <= MAX_VERIFIED_BYTES:
        verdict = verify(root, progress=progress)
        return {"whole": True, "problems": [f"{one.where}: {one.what}" for one in verdict.problems]}
    problems = []
    for shard in shards:
        path = root / shard["path"]
        held = path.stat().st_size if path.is_file() else None
        if held != shard["bytes"]:
            found = "is missing" if held is None else f"has {held:,} bytes, not {shard['bytes']:,}"
            problems.append(f"{shard['path']} {found}")
    return {"whole": False, "problems": problems}


def _throughput(root: Path, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """When the set was prepared and how fast, as its files' times tell.

    dataset.json holds no times, so that equal preparations are equal to the byte. A copy that did not keep
    the files' times shows as a set that was made in an instant, and no pace is told.
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
    later = sum(samples for _, samples in times[1:])
    return {
        "when": datetime.fromtimestamp(times[-1][0], UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rate": later / seconds if seconds > 1 else None,
        "seconds": seconds,
    }


def _settings(config: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    return [
        (f"{section}.{name}", value) for section, values in config.items() for name, value in values.items()
    ]


def _flags(info: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    from avdata.errors import SampleFlag  # noqa: PLC0415

    known = set(SampleFlag)
    return [
        (name, held, SampleFlag(name).description if name in known else "a flag this version does not know")
        for name, held in info["flags"].items()
    ]


def _quarantine(root: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    from avdata.reporting.remedies import meaning, remedy  # noqa: PLC0415

    rows: list[dict[str, Any]] = []
    file = pq.ParquetFile(root / "quarantine.parquet")
    for batch in file.iter_batches(batch_size=MAX_QUARANTINED_ROWS):
        rows += batch.slice(0, MAX_QUARANTINED_ROWS - len(rows)).to_pylist()
        if len(rows) == MAX_QUARANTINED_ROWS:
            break
    return {
        "rows": rows,
        "total": file.metadata.num_rows,
        "reasons": {name: (meaning(name), remedy(name)) for name in info["quarantine"]},
    }


def _charts(info: Mapping[str, Any], facts: DatasetStatistics, opened: Any) -> list[Chart]:
    held = facts.histograms
    if not held:
        return []
    of = f"of {opened.whole:,} samples drawn" if opened.whole < facts.samples else "of all samples"
    loudness = f"Loudness {of}" if opened.in_dbfs else f"Mean of the spectrogram {of}"
    unit = "dBFS" if opened.in_dbfs or info["config"]["audio"]["log"] != "db" else "dB"
    made = [
        histogram("Measured offset of the sound", "ms", held["offset"], scale=1000),
        histogram("Duration of the sound", "s", held["sound"]),
        histogram("Duration of the picture", "s", held["picture"]),
        histogram("Padding, share of the window", "%", held["pad"], scale=100),
        histogram(loudness, unit, _spread(opened.loudness)) if len(opened.loudness) else None,
    ]
    return [chart for chart in made if chart is not None]


def _spread(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low - 0.5, high + 0.5, 31)
    return Histogram(edges, {"samples": np.histogram(values, edges)[0]})


def _mel_chart(info: Mapping[str, Any], against: Mapping[str, Any] | None) -> Chart | None:
    stats = info["mel_stats"]
    if stats is None:
        return None
    means = {"mean": stats["mean"]}
    theirs = None if against is None else against["mel_stats"]
    if theirs is not None and len(theirs["mean"]) == len(stats["mean"]):
        means["mean of the other set"] = theirs["mean"]
    return band("Spectrogram by band, train split", "band", means, stats["std"])


def _comparison_chart(comparison: Comparison | None) -> Chart | None:
    if comparison is None or comparison.offsets is None:
        return None
    return histogram("How far measured offsets moved", "ms", comparison.offsets, scale=1000)
