from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from avdata.recipes import synthetic

import avdata
from avdata.errors import SourceError, UsageError
from avdata.streaming.opening import open_dataset


def test_synthetic_label_is_independent_of_each_modality(synthetic_mock: Path) -> None:
    clips = synthetic.clips(synthetic_mock, "fixed")
    for half in ("tone", "blob"):
        for value in (0, 1):
            held = Counter(clip.label for clip in clips if clip.extras[half] == value)
            assert held["same"] == held["different"]


def test_prepare_synthetic_keeps_tone_and_blob_positions(synthetic_set: Path) -> None:
    data = open_dataset(synthetic_set, "train", normalize=False)
    for number in range(len(data)):
        sample = data[number]
        bands = sample.mel.mean((0, 1, 3))
        tone = int(bands.argmax() >= len(bands) // 2)
        columns = sample.frames.float().mean((0, 1, 2))
        blob = int(columns.argmax() >= len(columns) // 2)
        assert (tone, blob) == (sample.metadata["extras"]["tone"], sample.metadata["extras"]["blob"])
        assert data.labels[sample.label] == ("same" if tone == blob else "different")


def test_xor_labels_have_no_linear_solution() -> None:
    places = np.array([(1, tone, blob) for tone in (0, 1) for blob in (0, 1)], float)
    labels = np.array([1.0, -1.0, -1.0, 1.0])
    weights, *_ = np.linalg.lstsq(places, labels, rcond=None)
    assert np.allclose(places @ weights, 0)


def test_clips_rejects_a_folder_without_the_clip_table(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"clips\.csv is missing"):
        synthetic.clips(tmp_path, "fixed")


def test_synthetic_agree_hides_one_modality_and_shows_the_label_in_the_other(tmp_path: Path) -> None:
    mock = avdata.mock("synthetic-agree", tmp_path / "mock", clips=64)
    avdata.prepare("synthetic-agree", source=mock, output=tmp_path / "set", workers=0)
    data = open_dataset(tmp_path / "set", "train", normalize=False)
    hidden: Counter[tuple[str, int]] = Counter()
    for number in range(len(data)):
        sample = data[number]
        told = {}
        bands = sample.mel.amax((0, 1, 3))
        if bands.max() - bands.median() > 15:
            pitch = float(bands.argmax())
            edges = [_band(hertz) for hertz in (600.0, 1_550.0, 3_500.0)]
            told["tone"] = sum(pitch > edge for edge in edges)
        columns = sample.frames.float().mean((0, 1, 2))
        if columns.max() > 70:
            told["blob"] = int(columns.argmax()) // 8
        (name, place), *others = told.items()
        assert not others
        assert sample.metadata["extras"] == {"tone": None, "blob": None, name: place}
        assert place == sample.label
        hidden[name, sample.label] += 1
    # If a modality is hidden, all labels are equally frequent, so its accuracy is at chance level.
    for name in ("tone", "blob"):
        shares = [hidden[name, label] / len(data) for label in range(4)]
        assert max(shares) - min(shares) <= 2 / len(data)


def _band(hertz: float) -> float:
    """Return the mel band of a frequency on the Slaney scale with 32 bands up to 8 kHz."""

    def mel(value: float) -> float:
        return value / 200 * 3 if value < 1000 else 15 + 27 * np.log(value / 1000) / np.log(6.4)

    return float(mel(hertz) / mel(8000) * 33 - 1)


def test_synthetic_xor4_label_is_the_sum_of_positions_modulo_four(tmp_path: Path) -> None:
    mock = avdata.mock("synthetic-xor4", tmp_path, clips=32)
    clips = synthetic.clips(mock, "fixed")
    assert all(int(clip.label) == (clip.extras["tone"] + clip.extras["blob"]) % 4 for clip in clips)
    for half in ("tone", "blob"):
        held = Counter((clip.extras[half], clip.label) for clip in clips)
        assert len(held) == 16
        assert set(held.values()) == {2}


@pytest.mark.parametrize(("name", "count"), [("synthetic", 6), ("synthetic", 21), ("synthetic-agree", 13)])
def test_small_synthetic_mock_has_every_label_in_every_split(name: str, count: int, tmp_path: Path) -> None:
    clips = synthetic.clips(avdata.mock(name, tmp_path, clips=count), "fixed")
    assert len(clips) == count
    held = {split: Counter(clip.label for clip in clips if clip.split == split) for split in synthetic.COUNTS}
    assert all(set(counts) == {clip.label for clip in clips} for counts in held.values())
    for split in ("val", "test"):
        assert len(set(held[split].values())) == 1


def test_load_recipe_rejects_an_unknown_synthetic_task() -> None:
    with pytest.raises(UsageError, match="Unknown task 'xor5'"):
        avdata.load_recipe("synthetic-xor5")
