from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import avdata
from avdata.reporting.sample_plot import save_sample_plot
from avdata.shards.sample import load_sample


def test_a_sample_shows_its_frames_above_its_spectrogram(cremad_set: Path) -> None:
    sample = avdata.open(cremad_set)[0]
    shown = sample._repr_html_()
    assert sample.key in shown
    assert len(re.findall(r'<img [^>]*src="data:image/webp;base64,', shown)) == 4 + 1
    assert load_sample(cremad_set, sample.key)._repr_html_().count("<img") == 5


def test_a_dataset_shows_its_labels_and_some_samples(cremad_set: Path) -> None:
    dataset = avdata.open(cremad_set, filter="label_name == 'ANG'")
    shown = dataset._repr_html_()
    assert f"{len(dataset)} samples" in shown
    assert dataset[0].key in shown
    assert "CREMA-D" in shown


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_a_picture_keeps_the_shape_of_frames(
    steps: int, cremad_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: drawn.append(figure))
    sample = load_sample(cremad_set)
    frames = np.repeat(sample.frames[:1], steps, axis=0)
    save_sample_plot(replace(sample, frames=frames), tmp_path / "sample.png")
    drawn[0].draw_without_rendering()
    width, height = drawn[0].axes[1].get_window_extent().size
    assert width / steps == pytest.approx(height, rel=0.12)


def test_bars_follow_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    show = avdata.tqdm_progress()
    for done in (1, 2, 3):
        show("prepare", done, 3)
    said = capsys.readouterr().err
    assert "prepare" in said
    assert "3/3" in said


def test_bars_are_drawn_again_for_the_next_work_of_the_same_name(capsys: pytest.CaptureFixture[str]) -> None:
    show = avdata.tqdm_progress()
    show("verify", 3, 3)
    capsys.readouterr()
    for done in (0, 4):
        show("verify", done, 4)
    assert "4/4" in capsys.readouterr().err
