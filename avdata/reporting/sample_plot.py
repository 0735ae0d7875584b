"""Plot of a sample: its spectrogram above its frames, on one time axis."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.features.audio import AUDIO_FEATURES
from avdata.features.audio.librosa_errors import librosa_errors
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
        AvdataError: the file cannot be written, or librosa cannot be imported.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    steps = len(sample.mel)
    axis_width = min(max(6.6, 1.8 * steps), MAX_WIDTH)
    # Without frames, the second plot is only the time axis.
    frame_size = axis_width / steps if sample.frames is not None else 0.3
    size = (axis_width + 1.4, SPECTROGRAM_HEIGHT + frame_size + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    mel_axes, frame_axes = figure.subplots(2, 1, sharex=True, height_ratios=[SPECTROGRAM_HEIGHT, frame_size])
    _plot_spectrogram(sample, mel_axes)
    mel_axes.set_title(_title(sample), loc="left", fontsize=10)
    _plot_frames(sample, frame_axes)
    for edge in np.ravel(_step_cells(sample)):
        mel_axes.axvline(edge, color="white", linewidth=0.7, linestyle=":")
        frame_axes.axvline(edge, color="black", linewidth=0.7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    atomic_write(Path(path), buffer.getvalue())


def _plot_spectrogram(sample: StoredSample, axes: Axes) -> None:
    from matplotlib.ticker import ScalarFormatter  # noqa: PLC0415

    mel_scale = AUDIO_FEATURES[sample.audio["feature"]].mel_scale
    values, times = _time_axis(sample)
    with librosa_errors():
        from librosa.display import specshow  # noqa: PLC0415  # takes a second

        image = specshow(
            values,
            x_coords=times,
            y_coords=frequency_edges(sample.audio, sample.mel.shape[1], mel_scale),
            x_axis="s",
            y_axis="mel" if mel_scale else "linear",
            cmap="magma",
            ax=axes,
        )
    # librosa's formatter has three digits: 1,234.5 s would be 1.23e+03.
    axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    if mel_scale is None:
        # The first and the last bin are centered on the limits.
        axes.set_ylim(0, sample.audio["sample_rate"] / 2)
    axes.label_outer()
    axes.figure.colorbar(image, ax=axes, label=sample.audio["feature"], pad=0.01)


def _time_axis(sample: StoredSample) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectrogram, float32 [F, n], and the edges of its columns on the clip's axis, s, [n + 1].

    Column k of a step is centered k hops after the step's start. Columns that overlapping steps share are
    returned once. A gap between steps is one column of NaN.
    """
    audio, mel, start = sample.audio, sample.mel.astype(np.float32), sample.row["window_start"]
    hop = audio["hop_length"] / audio["sample_rate"]
    steps, bins, columns = mel.shape
    if audio["layout"] == "repeat":
        edges = np.linspace(0, _columns_before_resize(sample), columns + 1)
        return mel[0], start + hop * (edges - 0.5)
    middles = sample.metadata["step_times"]
    stride = round((middles[1] - middles[0]) / hop) if steps > 1 else columns
    blocks, lefts = [], []
    for step, values in enumerate(mel):
        kept = columns if step == steps - 1 else min(columns, stride)
        blocks.append(values[:, :kept])
        lefts.append(step * stride + np.arange(kept))
        if kept < stride and step < steps - 1:
            blocks.append(np.full((bins, 1), np.nan, np.float32))
            lefts.append(step * stride + np.array([kept]))
    edges = np.concatenate([*lefts, [(steps - 1) * stride + columns]])
    return np.concatenate(blocks, axis=1), start + hop * (edges - 0.5)


def _columns_before_resize(sample: StoredSample) -> int:
    """Return the number of columns of the complete window, which `audio.resize` changes."""
    audio, row = sample.audio, sample.row
    if not audio["resize"]:
        return sample.mel.shape[2]
    samples = round((row["window_end"] - row["window_start"]) * audio["sample_rate"])
    return int(1 + (samples - audio["n_fft"] % 2) // audio["hop_length"])


def frequency_edges(audio: Mapping[str, Any], rows: int, mel_scale: str | None) -> np.ndarray:
    """Return the edges of a spectrogram's rows in Hz, float64 [F + 1].

    Args:
        audio: settings of the section `audio`.
        rows: F; `audio.resize` changes it, and not the range.
        mel_scale: `mel_scale` of the audio feature.
    """
    import librosa  # noqa: PLC0415  # see `_plot_spectrogram`

    nyquist = audio["sample_rate"] / 2
    if mel_scale:
        # The centers of the bands are evenly spaced between the limits, which are no centers themselves.
        is_htk = mel_scale == "htk"
        low, high = librosa.hz_to_mel(np.array([audio["fmin"], audio["fmax"] or nyquist]), htk=is_htk)
        half = (high - low) / (audio["n_mels"] + 1) / 2
        return np.asarray(librosa.mel_to_hz(np.linspace(low + half, high - half, rows + 1), htk=is_htk))
    half = audio["sample_rate"] / audio["n_fft"] / 2
    last = audio["n_fft"] // 2 * 2 * half
    return np.linspace(-half, last + half, rows + 1)


def _step_cells(sample: StoredSample) -> list[tuple[float, float]]:
    """Return the interval of each step, s; of overlapping steps, the part closest to its middle."""
    middles = sample.metadata["step_times"]
    width = 2 * (middles[0] - sample.row["window_start"])
    if len(middles) > 1:
        width = min(width, middles[1] - middles[0])
    return [(middle - width / 2, middle + width / 2) for middle in middles]


def _plot_frames(sample: StoredSample, axes: Axes) -> None:
    frames: Iterable[np.ndarray] = () if sample.frames is None else sample.frames
    for (left, right), frame in zip(_step_cells(sample), frames, strict=False):
        is_gray = frame.shape[-1] == 1
        axes.imshow(
            frame[..., 0] if is_gray else frame,
            extent=(left, right, 0, 1),
            aspect="auto",
            cmap="gray" if is_gray else None,
        )
    frame_times = visible_frame_times(sample)
    for time in frame_times:
        axes.plot([time], [1.0], marker="v", color="tab:red", clip_on=False, markersize=6)
    axes.set_xlim(sample.row["window_start"], sample.row["window_end"])
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    legend = "; red marks: presentation time of each frame" if frame_times else ""
    axes.set_xlabel(f"Time on the clip's axis (seconds){legend}")


def join_mel_steps(sample: StoredSample) -> np.ndarray:
    """Return the spectrograms of all steps side by side, float32 [F, columns], for both layouts."""
    mel = sample.mel.astype(np.float32)
    return mel[0] if sample.audio["layout"] == "repeat" else np.concatenate(list(mel), axis=1)


def visible_frame_times(sample: StoredSample) -> list[float]:
    """Return the presentation times of the frames inside the window, in seconds; none for still images."""
    if "frames_are_static" in sample.row["flags"]:
        return []
    start, end = sample.row["window_start"], sample.row["window_end"]
    return [time for time in sample.metadata.get("frame_times", ()) if start <= time <= end]


def _title(sample: StoredSample) -> str:
    row = sample.row
    offset = "" if row["av_offset"] is None else f"   audio offset {row['av_offset'] * 1000:+.2f} ms"
    flags = f"   [{', '.join(row['flags'])}]" if row["flags"] else ""
    return f"{row['key']}   {row['label_name']}   {row['split']}{offset}{flags}"
