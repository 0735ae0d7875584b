"""Plot of a sample: its spectrogram above its frames, on one time axis."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avdata.shards.sample import StoredSample
from avdata.storage.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPECTROGRAM_HEIGHT = 3.6

MAX_WIDTH = 36.0
"""Height of the spectrogram and largest width of the time axis, in inches."""


def save_sample_plot(sample: StoredSample, path: str | Path) -> None:
    """Plot a sample to a PNG file.

    Args:
        sample: the sample, from `load_sample`.
        path: the PNG file.

    Raises:
        AvdataError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    start, end = sample.row["window_start"], sample.row["window_end"]
    steps = len(sample.frames)
    axis_width = min(max(6.6, 1.8 * steps), MAX_WIDTH)
    frame_size = axis_width / steps
    size = (axis_width + 1.4, SPECTROGRAM_HEIGHT + frame_size + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    mel_axes, frame_axes = figure.subplots(2, 1, sharex=True, height_ratios=[SPECTROGRAM_HEIGHT, frame_size])
    mel = join_mel_steps(sample)
    image = mel_axes.imshow(
        mel, origin="lower", aspect="auto", extent=(start, end, 0, mel.shape[0]), cmap="magma"
    )
    figure.colorbar(image, ax=mel_axes, label="log energy", pad=0.01)
    mel_axes.set_ylabel("band")
    mel_axes.set_title(_title(sample), loc="left", fontsize=10)
    _plot_frames(sample, frame_axes)
    for edge in np.linspace(start, end, steps + 1):
        mel_axes.axvline(edge, color="white", linewidth=0.7, linestyle=":")
        frame_axes.axvline(edge, color="black", linewidth=0.7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    atomic_write(Path(path), buffer.getvalue())


def _plot_frames(sample: StoredSample, axes: Axes) -> None:
    start, end = sample.row["window_start"], sample.row["window_end"]
    width = (end - start) / len(sample.frames)
    for step, frame in enumerate(sample.frames):
        left = start + step * width
        is_gray = frame.shape[-1] == 1
        axes.imshow(
            frame[..., 0] if is_gray else frame,
            extent=(left, left + width, 0, 1),
            aspect="auto",
            cmap="gray" if is_gray else None,
        )
    frame_times = visible_frame_times(sample)
    for time in frame_times:
        axes.plot([time], [1.0], marker="v", color="tab:red", clip_on=False, markersize=6)
    axes.set_xlim(start, end)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    legend = "; red marks: presentation time of each frame" if frame_times else ""
    axes.set_xlabel(f"time on the clip's axis (s){legend}")


def join_mel_steps(sample: StoredSample) -> np.ndarray:
    """Return the spectrogram of the complete window, float32 [F, columns], for both layouts."""
    mel = sample.mel.astype(np.float32)
    return mel[0] if sample.layout == "repeat" else np.concatenate(list(mel), axis=1)


def visible_frame_times(sample: StoredSample) -> list[float]:
    """Return the presentation times of the frames inside the window, in seconds; none for still images."""
    if "frames_are_static" in sample.row["flags"]:
        return []
    start, end = sample.row["window_start"], sample.row["window_end"]
    return [time for time in sample.metadata["frame_times"] if start <= time <= end]


def _title(sample: StoredSample) -> str:
    row = sample.row
    offset = "" if row["av_offset"] is None else f"   audio offset {row['av_offset'] * 1000:+.2f} ms"
    flags = f"   [{', '.join(row['flags'])}]" if row["flags"] else ""
    return f"{row['key']}   {row['label_name']}   {row['split']}{offset}{flags}"
