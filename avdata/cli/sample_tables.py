"""Tables of samples and counts for `avdata inspect` and `avdata stats`, with units."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avdata.cli.console import format_bytes, print_line, print_table

if TYPE_CHECKING:
    from avdata.shards.sample import StoredSample

LIST_COLUMNS = ("key", "split", "label", "window s", "offset ms", "padding", "flags")
"""Columns of a list of samples."""

MISSING = "–"


def list_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row of the index in a list of samples."""
    return (
        row["key"],
        row["split"],
        f"{row['label']} {row['label_name']}",
        _window(row),
        MISSING if row["av_offset"] is None else f"{1000 * row['av_offset']:.1f}",
        f"{row['pad_fraction']:.0%}",
        ", ".join(row["flags"]) or MISSING,
    )


def _window(row: Mapping[str, Any]) -> str:
    return f"{row['window_start']:.3f} to {row['window_end']:.3f}"


def sample_rows(sample: StoredSample) -> list[tuple[str, str]]:
    """Return the names and values of a sample, with units."""
    row, metadata = sample.row, sample.metadata
    members = ", ".join(f"{name} {format_bytes(size)}" for name, size in sample.members.items())
    rows = [
        ("key", row["key"]),
        ("split", row["split"]),
        ("label", f"{row['label']} {row['label_name']}"),
        ("group", row["group"]),
        ("flags", ", ".join(row["flags"]) or "none"),
        ("window", f"{_window(row)} s of the clip, {row['pad_fraction']:.1%} padding"),
        ("audio", _duration(row["duration_audio"])),
        ("video", _duration(row["duration_video"])),
        ("audio offset", _offset(row)),
        ("spectrogram", _mel(sample)),
        ("frames", MISSING if sample.frames is None else f"{list(sample.frames.shape)} [T, H, W, C], uint8"),
        ("frame times", _times(metadata.get("frame_times"))),
        ("step times", _times(metadata["step_times"])),
    ]
    if metadata.get("step_labels") is not None:
        rows.append(("step labels", _step_labels(metadata["step_labels"], sample.labels)))
    sources = ((f"{role} file", file["path"]) for role, file in metadata["sources"].items())
    stored = f"{row['shard']}, {format_bytes(row['nbytes'])} at byte {row['offset']:,}"
    return [*rows, *sources, ("stored in", stored), ("members", members)]


def _duration(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{seconds:.3f} s"


def _offset(row: Mapping[str, Any]) -> str:
    if row["av_offset"] is None:
        return "not measured (no separate audio file)"
    peak = "" if row["av_peak"] is None else f", correlation {row['av_peak']:.2f}"
    return f"{1000 * row['av_offset']:.1f} ms{peak}"


def _mel(sample: StoredSample) -> str:
    low, high = float(sample.mel.min()), float(sample.mel.max())
    is_db = sample.audio["feature"] in {"log-mel", "log-stft"} and sample.audio["log"] == "db"
    unit = " dB" if is_db and sample.audio["normalize"] == "none" else ""
    return f"{list(sample.mel.shape)} [T, bands, columns], float16, {low:.2f} to {high:.2f}{unit}"


def _times(seconds: Sequence[float] | None) -> str:
    return MISSING if seconds is None else ", ".join(f"{time:.3f}" for time in seconds) + " s"


def _step_labels(labels: Sequence[int], names: Sequence[str]) -> str:
    """Return runs of equal labels, such as `0–3 background, 4–9 Church bell`."""
    parts, start = [], 0
    for label, steps in itertools.groupby(labels):
        end = start + len(list(steps))
        steps_text = f"step {start}" if end - start == 1 else f"steps {start} to {end - 1}"
        name = names[label] if 0 <= label < len(names) else "unknown"
        parts.append(f"{steps_text}: {label} {name}")
        start = end
    return "; ".join(parts)


def show_stats(summary: Mapping[str, Any]) -> None:
    """Print the tables of `avdata stats`."""
    splits = summary["splits"]
    rows = [
        (
            name, f"{split['samples']:,}", f"{split['hours']:.3g}", f"{split['groups']:,}",
            f"{split['shards']:,}", format_bytes(split["bytes"]),
        )
        for name, split in splits.items()
    ]  # fmt: skip
    total = (
        "all",
        f"{summary['samples']:,}",
        f"{summary['hours']:.3g}",
        "",
        "",
        format_bytes(summary["bytes"]),
    )
    print_table(("split", "samples", "hours", "groups", "shards", "size"), [*rows, total])
    print_line("")
    names = sorted({label for split in splits.values() for label in split["labels"]})
    counts = [
        (label, *(f"{split['labels'].get(label, 0):,}" for split in splits.values())) for label in names
    ]
    print_table(("label", *splits), counts)
    print_line("")
    measured = [
        (name, *(f"{values[key]:.4g}" for key in ("min", "median", "mean", "max")), f"{values['count']:,}")
        for name in ("duration_audio_s", "duration_video_s", "av_offset_s", "pad_fraction")
        if (values := summary[name]) is not None
    ]
    print_table(("measurement", "min", "median", "mean", "max", "samples"), measured)
    for name in ("flags", "quarantine"):
        print_line(f"{name}: " + (", ".join(f"{code} {n:,}" for code, n in summary[name].items()) or "none"))
