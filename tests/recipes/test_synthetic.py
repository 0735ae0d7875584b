from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from avdata.recipes import synthetic

from avdata.errors import SourceError
from avdata.stream import open_dataset


def test_neither_half_tells_the_label(synthetic_mock: Path) -> None:
    clips = synthetic.clips(synthetic_mock, "fixed")
    for half in ("tone", "blob"):
        for value in (0, 1):
            held = Counter(clip.label for clip in clips if clip.extras[half] == value)
            assert held["same"] == held["different"]


def test_tone_and_blob_are_where_the_list_says(synthetic_set: Path) -> None:
    data = open_dataset(synthetic_set, "train", normalize=False)
    for number in range(len(data)):
        sample = data[number]
        bands = sample.mel.mean((0, 1, 3))
        tone = int(bands.argmax() >= len(bands) // 2)
        columns = sample.frames.float().mean((0, 1, 2))
        blob = int(columns.argmax() >= len(columns) // 2)
        assert (tone, blob) == (sample.facts["extras"]["tone"], sample.facts["extras"]["blob"])
        assert data.labels[sample.label] == ("same" if tone == blob else "different")


def test_no_sum_of_a_score_of_each_half_solves_it() -> None:
    places = np.array([(1, tone, blob) for tone in (0, 1) for blob in (0, 1)], float)
    labels = np.array([1.0, -1.0, -1.0, 1.0])
    weights, *_ = np.linalg.lstsq(places, labels, rcond=None)
    assert np.allclose(places @ weights, 0)


def test_a_folder_without_the_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no clips\.csv"):
        synthetic.clips(tmp_path, "fixed")
