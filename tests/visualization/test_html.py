"""HTML of samples and datasets for notebooks."""

from __future__ import annotations

import re
from pathlib import Path

import avdata
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
