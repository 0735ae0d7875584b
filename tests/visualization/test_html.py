"""HTML of samples and datasets for notebooks."""

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


def test_sample_html_contains_frames_and_spectrogram(cremad_set: Path) -> None:
    sample = avdata.open(cremad_set)[0]
    html = sample._repr_html_()
    assert sample.key in html
    assert len(re.findall(r'<img [^>]*src="data:image/webp;base64,', html)) == 4 + 1
    assert load_sample(cremad_set, sample.key)._repr_html_().count("<img") == 5


def test_dataset_html_contains_title_and_samples(cremad_set: Path) -> None:
    dataset = avdata.open(cremad_set, filter="label_name == 'ANG'")
    html = dataset._repr_html_()
    assert f"{len(dataset)} samples" in html
    assert dataset[0].key in html
    assert "CREMA-D" in html


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_save_sample_plot_keeps_the_aspect_ratio_of_frames(
    steps: int, cremad_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    sample = load_sample(cremad_set)
    frames = np.repeat(sample.frames[:1], steps, axis=0)
    save_sample_plot(replace(sample, frames=frames), tmp_path / "sample.png")
    figures[0].draw_without_rendering()
    width, height = figures[0].axes[1].get_window_extent().size
    assert width / steps == pytest.approx(height, rel=0.12)
