"""A sample as a picture: its spectrogram above its frames, on one time axis."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from avdata.shards.sample import StoredSample
from avdata.storage.atomic import atomic_write

SOUND = 3.6

MAX_WIDTH = 36.0
"""Height of the spectrogram and largest width of the axis, inches."""


def save_sample_plot(sample: StoredSample, path: str | Path) -> None:
    """Draw a sample into a PNG.

    Args:
        sample: what `load_sample` returns.
        path: where the PNG goes.

    Raises:
        AvdataError: it cannot be written there.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    start, end = sample.row["window_start"], sample.row["window_end"]
    steps = len(sample.frames)
    axis = min(max(6.6, 1.8 * steps), MAX_WIDTH)
    square = axis / steps  # a frame keeps its shape
    figure = Figure(figsize=(axis + 1.4, SOUND + square + 1.1), layout="constrained")
    sound, sight = figure.subplots(2, 1, sharex=True, height_ratios=[SOUND, square])
    picture = join_mel_steps(sample)
    image = sound.imshow(
        picture, origin="lower", aspect="auto", extent=(start, end, 0, picture.shape[0]), cmap="magma"
    )
    figure.colorbar(image, ax=sound, label="log energy", pad=0.01)
    sound.set_ylabel("band")
    sound.set_title(_title(sample), loc="left", fontsize=10)
    width = (end - start) / steps
    for step, frame in enumerate(sample.frames):
        left = start + step * width
        gray = frame.shape[-1] == 1
        sight.imshow(
            frame[..., 0] if gray else frame,
            extent=(left, left + width, 0, 1),
            aspect="auto",
            cmap="gray" if gray else None,
        )
    for edge in np.linspace(start, end, steps + 1):
        sound.axvline(edge, color="white", linewidth=0.7, linestyle=":")
        sight.axvline(edge, color="black", linewidth=0.7)
    moments = visible_frame_times(sample)
    for moment in moments:
        sight.plot([moment], [1.0], marker="v", color="tab:red", clip_on=False, markersize=6)
    sight.set_xlim(start, end)
    sight.set_ylim(0, 1)
    sight.set_yticks([])
    marks = "; red marks: when each frame came on screen" if moments else ""
    sight.set_xlabel(f"time on the clip's axis (s){marks}")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    atomic_write(Path(path), drawn.getvalue())


def join_mel_steps(sample: StoredSample) -> np.ndarray:
    """The spectrogram of the whole window, float32 [F, columns], whatever its layout."""
    mel = sample.mel.astype(np.float32)
    return mel[0] if sample.layout == "repeat" else np.concatenate(list(mel), axis=1)


def visible_frame_times(sample: StoredSample) -> list[float]:
    """When each frame came on screen, s on the clip's axis; those outside the window and stills left out."""
    if "frames_are_static" in sample.row["flags"]:
        return []
    start, end = sample.row["window_start"], sample.row["window_end"]
    return [moment for moment in sample.metadata["frame_times"] if start <= moment <= end]


def _title(sample: StoredSample) -> str:
    row = sample.row
    offset = "" if row["av_offset"] is None else f"   audio offset {row['av_offset'] * 1000:+.2f} ms"
    flags = f"   [{', '.join(row['flags'])}]" if row["flags"] else ""
    return f"{row['key']}   {row['label_name']}   {row['split']}{offset}{flags}"
