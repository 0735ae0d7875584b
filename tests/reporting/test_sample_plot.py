"""Plot of a sample: its axes against librosa's frequencies and the times of a generated beep."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import librosa.display
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avdata.config.schema import Config, build_config
from avdata.errors import AvdataError
from avdata.features.alignment import Window, step_centers
from avdata.features.audio import compute_audio_feature
from avdata.reporting.sample_plot import save_sample_plot
from avdata.shards.sample import StoredSample
from avdata.testing.media import BEEP_HZ, BEEP_SECONDS, Scene, scene_audio

START = 1234.5
BEEP_TIME = START + 0.7
REPEAT = {"layout": "repeat"}

LAYOUTS: dict[str, dict[str, Any]] = {
    "steps": {},
    "one step": {"video": {"num_frames": 1}},
    "overlapping steps": {"align": {"window": "segments", "seconds": 1.28, "hop": 0.64}},
    "gaps": {"align": {"window": "segments", "seconds": 0.32, "hop": 0.64}},
    "repeat": {"audio": REPEAT},
    "resize": {"audio": {**REPEAT, "resize": [64, 200], "fmin": 50.0, "fmax": 7_000.0}},
    "whole": {"audio": {**REPEAT, "resize": [64, 200]}, "align": {"window": "whole", "seconds": None}},
}


def stored_sample(config: Config) -> StoredSample:
    """Return a sample of a window at 1,234.5 s with a beep 0.7 s after its start."""
    steps = config.video.num_frames
    seconds = float(config.align.window_seconds(steps)) if config.align.seconds else 3.0
    wave = scene_audio(Scene(seconds=seconds, beeps=(BEEP_TIME - START,), seed=2), config.audio.sample_rate)
    window = Window(START, START + seconds)
    middles = [float(middle) for middle in step_centers(window, steps, config.align.segment)]
    row = {"key": "k", "label_name": "a", "split": "train", "av_offset": None, "flags": []}
    return StoredSample(
        row={**row, "window_start": window.start, "window_end": window.end},
        metadata={"step_times": middles, "frame_times": middles},
        mel=compute_audio_feature(wave, config).astype(np.float16),
        frames=np.zeros((steps, 8, 8, 3), np.uint8),
        members={},
        audio=config.audio.model_dump(mode="json"),
        labels=("a",),
    )


@dataclass
class Plot:
    """Axes of a plot, and its spectrogram [F, n] with the edges of its columns in s and of its rows in Hz."""

    axes: Axes
    frame_axes: Axes
    values: np.ndarray
    times: np.ndarray
    frequencies: np.ndarray

    @property
    def column_centers(self) -> np.ndarray:
        return (self.times[:-1] + self.times[1:]) / 2


def plot(sample: StoredSample, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plot:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    save_sample_plot(sample, tmp_path / "sample.png")
    axes, frame_axes = figures[0].axes[:2]
    (mesh,) = axes.collections
    corners = mesh.get_coordinates()
    values = np.ma.filled(mesh.get_array(), np.nan).reshape(len(corners) - 1, -1)
    return Plot(axes, frame_axes, values, corners[0, :, 0], corners[:, 0, 1])


def tick_labels(axes: Axes, which: str) -> dict[float, str]:
    """Return the labels of the visible ticks by position."""
    axes.figure.draw_without_rendering()
    axis, (low, high) = getattr(axes, f"{which}axis"), getattr(axes, f"get_{which}lim")()
    labels = zip(axis.get_majorticklocs(), (label.get_text() for label in axis.get_ticklabels()), strict=True)
    return {position: text for position, text in labels if low <= position <= high}


@pytest.mark.parametrize("feature", ["log-mel", "log-stft", "pcen"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_plot_shows_a_beep_at_its_time_and_frequency(
    layout: str, feature: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = build_config(LAYOUTS[layout], {"audio": {"feature": feature, "n_fft": 512}})
    shown = plot(stored_sample(config), monkeypatch, tmp_path)
    row, column = np.unravel_index(np.nanargmax(shown.values), shown.values.shape)
    height, width = np.diff(shown.frequencies)[row], np.diff(shown.times)[column]
    assert shown.frequencies[row] - height <= BEEP_HZ <= shown.frequencies[row + 1] + height
    reach = width + 256 / config.audio.sample_rate
    assert BEEP_TIME - reach <= shown.column_centers[column] <= BEEP_TIME + BEEP_SECONDS + reach
    start, end = shown.axes.get_xlim()
    assert (start, end) == (START, stored_sample(config).row["window_end"])
    assert shown.frame_axes.get_xlim() == (start, end)
    # Half a column reaches over the start.
    assert shown.times[0] <= start + 1e-9
    assert shown.times[-1] >= end - 2 * width


@pytest.mark.parametrize("layout", ["steps", "overlapping steps", "repeat"])
def test_columns_are_centered_on_their_hops(
    layout: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = plot(stored_sample(build_config(LAYOUTS[layout])), monkeypatch, tmp_path)
    expected = START + librosa.times_like(shown.values, sr=16_000, hop_length=80)
    assert np.allclose(shown.column_centers, expected, rtol=0, atol=1e-6)


def test_gap_between_steps_is_blank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = plot(stored_sample(build_config(LAYOUTS["gaps"])), monkeypatch, tmp_path)
    is_gap = np.isnan(shown.values).all(axis=0)
    assert np.array_equal(np.isnan(shown.values).any(axis=0), is_gap)
    # Columns reach half a hop of 5 ms over the ends of their step.
    lefts, rights = START + np.arange(3) * 0.64 + 0.32 - 0.0025, START + np.arange(1, 4) * 0.64 - 0.0025
    assert np.allclose(shown.times[:-1][is_gap], lefts, rtol=0, atol=1e-6)
    assert np.allclose(shown.times[1:][is_gap], rights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("feature", ["log-mel", "pcen"])
def test_mel_axis_is_in_hz_on_the_mel_scale(
    feature: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = plot(stored_sample(build_config({"audio": {"feature": feature}})), monkeypatch, tmp_path)
    assert (shown.axes.get_ylabel(), shown.axes.get_yscale()) == ("Hz", "symlog")
    limits = librosa.mel_frequencies(130, fmin=0, fmax=8_000)
    assert (shown.frequencies[:-1] < limits[1:-1]).all()
    assert (limits[1:-1] < shown.frequencies[1:]).all()
    assert limits[0] < shown.frequencies[0]
    assert shown.frequencies[-1] < limits[-1]
    assert shown.axes.get_ylim() == pytest.approx((shown.frequencies[0], shown.frequencies[-1]))
    assert tick_labels(shown.axes, "y") == {512: "512", 1024: "1024", 2048: "2048", 4096: "4096"}


def test_resized_mel_axis_has_the_range_of_the_unresized_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    band = {"fmin": 300.0, "fmax": 4_000.0}
    full = plot(stored_sample(build_config({"audio": band})), monkeypatch, tmp_path)
    resized = build_config({"audio": {**REPEAT, **band, "resize": [32, 64]}})
    shown = plot(stored_sample(resized), monkeypatch, tmp_path)
    assert len(shown.frequencies) == 33
    assert np.allclose(shown.frequencies, full.frequencies[::4])


@pytest.mark.parametrize("n_fft", [1023, 1024])
def test_stft_axis_is_in_hz_on_a_linear_scale(
    n_fft: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = build_config({"audio": {"feature": "log-stft", "n_fft": n_fft}})
    shown = plot(stored_sample(config), monkeypatch, tmp_path)
    assert (shown.axes.get_ylabel(), shown.axes.get_yscale()) == ("Hz", "linear")
    centers = (shown.frequencies[:-1] + shown.frequencies[1:]) / 2
    assert np.allclose(centers, librosa.fft_frequencies(sr=16_000, n_fft=n_fft), atol=1e-6)
    assert shown.axes.get_ylim() == (0, 8_000)
    assert tick_labels(shown.axes, "y") == {1_000.0 * tick: str(1_000 * tick) for tick in range(9)}


def test_time_axis_is_labeled_in_seconds_of_the_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = plot(stored_sample(Config()), monkeypatch, tmp_path)
    assert shown.frame_axes.get_xlabel().startswith("Time on the clip's axis (seconds)")
    ticks = tick_labels(shown.frame_axes, "x")
    assert len(ticks) >= 4
    assert {position: float(text) for position, text in ticks.items()} == {tick: tick for tick in ticks}
    # The ticks of the spectrogram are those of the frames below it.
    assert shown.axes.get_xlabel() == ""
    assert not any(label.get_visible() for label in shown.axes.get_xticklabels())
    assert shown.axes.get_shared_x_axes().joined(shown.axes, shown.frame_axes)


@pytest.mark.parametrize("layout", ["steps", "overlapping steps", "gaps"])
def test_frames_are_centered_on_their_steps(
    layout: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sample = stored_sample(build_config(LAYOUTS[layout]))
    shown = plot(sample, monkeypatch, tmp_path)
    extents = np.array([image.get_extent()[:2] for image in shown.frame_axes.images])
    assert np.allclose(extents.mean(axis=1), sample.metadata["step_times"], rtol=0, atol=1e-6)
    assert np.allclose(np.diff(extents), 0.32 if layout == "gaps" else 0.64)


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_plot_keeps_the_aspect_ratio_of_frames(
    steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = build_config({"video": {"num_frames": steps}, "align": {"seconds": 0.64 * steps}})
    shown = plot(stored_sample(config), monkeypatch, tmp_path)
    shown.frame_axes.figure.draw_without_rendering()
    width, height = shown.frame_axes.get_window_extent().size
    assert width / steps == pytest.approx(height, rel=0.12)


def test_plot_is_drawn_by_librosa(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specshow = librosa.display.specshow
    monkeypatch.setattr(librosa.display, "specshow", lambda values, **more: specshow(-values, **more))
    sample = stored_sample(Config())
    assert np.array_equal(plot(sample, monkeypatch, tmp_path).values, -np.concatenate(sample.mel, axis=1))


def test_plot_without_librosa_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sample = stored_sample(Config())
    monkeypatch.setitem(sys.modules, "librosa.display", None)
    with pytest.raises(AvdataError, match="librosa cannot be imported"):
        save_sample_plot(sample, tmp_path / "sample.png")
    assert not (tmp_path / "sample.png").exists()


def test_plot_of_gray_frames_is_a_png(tmp_path: Path) -> None:
    sample = stored_sample(Config())
    save_sample_plot(replace(sample, frames=sample.frames[..., :1]), tmp_path / "sample.png")
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
