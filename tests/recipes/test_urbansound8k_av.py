from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from avdata.recipes import urbansound8k
from avdata.recipes import urbansound8k_av as us8k
from hypothesis import given
from hypothesis import strategies as some

from avdata.config.schema import SelectConfig
from avdata.errors import SourceError
from avdata.selection import select_clips


def test_parse_stem_returns_label_and_recording() -> None:
    piece = urbansound8k.parse_stem("126153-9-0-6")
    assert piece == urbansound8k.Slice("126153-9-0-6", "126153", "street_music")
    assert urbansound8k.parse_stem(".DS_Store") is None


def test_scmrl70_splits_has_the_published_counts() -> None:
    counts = dict.fromkeys(range(10), 1000) | {1: 429, 6: 374, 8: 929}
    slices = [
        piece
        for label, count in counts.items()
        for number in range(count)
        if (piece := urbansound8k.parse_stem(f"{number}-{label}-0-0"))
    ]
    splits = urbansound8k.scmrl70_splits(slices)
    assert Counter(splits.values()) == {"train": 6_112, "test": 2_620}
    train = Counter(piece.label for piece in slices if splits[piece.stem] == "train")
    assert [train[label] for label in urbansound8k.LABELS] == [
        700,
        300,
        700,
        700,
        700,
        700,
        262,
        700,
        650,
        700,
    ]


@given(some.integers(1, 10), some.integers(1, 10))
def test_fold_split_uses_one_test_fold_and_one_validation_fold(fold: int, test: int) -> None:
    assert urbansound8k.fold_split(fold, test) in {"train", "val", "test"}
    held = Counter(urbansound8k.fold_split(other, test) for other in range(1, 11))
    assert held == {"train": 8, "val": 1, "test": 1}


def test_random70_split_has_the_expected_proportions() -> None:
    counted = Counter(urbansound8k.random70_split(str(fs_id)) for fs_id in range(100_000, 104_000))
    assert abs(counted["test"] / 4000 - 0.3) < 0.03
    assert abs(counted["val"] / 4000 - 0.1) < 0.02


@pytest.mark.parametrize("names", [("vision", "audio"), ("Dataset_v3_vision", "Dataset_v3_sound")])
def test_clips_returns_the_same_clips_for_both_folder_layouts(
    urbansound_bad: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(urbansound_bad, copy)
    (copy / "vision").rename(copy / names[0])
    (copy / "audio").rename(copy / names[1])
    clips = us8k.clips(copy, "fold:10")
    facts = [(clip.key, clip.label, clip.split, clip.flags) for clip in clips]
    assert facts == [(c.key, c.label, c.split, c.flags) for c in us8k.clips(urbansound_bad, "fold:10")]
    assert len(facts) == 31


def test_clips_with_folds_requires_the_csv(urbansound_bad: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(urbansound_bad, copy)
    (copy / "UrbanSound8K.csv").unlink()
    with pytest.raises(SourceError, match=r"no UrbanSound8K\.csv") as caught:
        us8k.clips(copy, "fold:1")
    assert "random70" in str(caught.value.hint)
    assert us8k.clips(copy, "random70")


def test_clips_flags_images_with_identical_bytes(urbansound_bad: Path) -> None:
    twins = [clip.key for clip in us8k.clips(urbansound_bad, "random70") if "dup_image_of" in clip.flags]
    assert {"900006-7-0-0", "900007-7-0-0"} <= set(twins)


def test_clips_ignores_urbansound8k_audio_next_to_the_dataset(urbansound_bad: Path, tmp_path: Path) -> None:
    shutil.copytree(urbansound_bad, tmp_path / "UrbanSound8K-AV")
    shutil.copytree(urbansound_bad / "audio", tmp_path / "UrbanSound8K" / "audio")
    for clip in us8k.clips(tmp_path, "random70"):
        assert clip.audio is not None
        assert clip.audio.is_relative_to(tmp_path / "UrbanSound8K-AV")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,fold\n100032-3-0-0.wav,1\n", "Columns slice_file_name and fold"),
        ("slice_file_name,fold\n100032-3-0-0.wav,11\n", "Invalid fold '11' in line 2"),
        ("slice_file_name,fold\n100032-3-0-0.wav\n", "Invalid fold '' in line 2"),
    ],
)
def test_clips_rejects_an_invalid_csv(urbansound_bad: Path, tmp_path: Path, text: str, said: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(urbansound_bad, copy)
    (copy / "UrbanSound8K.csv").write_text(text)
    with pytest.raises(SourceError, match=said):
        us8k.clips(copy, "fold:1")


def test_clips_resolves_duplicate_slices_by_class_and_accepts_broken_links(
    urbansound_bad: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(urbansound_bad, copy)
    first, second = sorted((copy / "vision").glob("*/*.jpg"))[:2]
    other = copy / "vision" / ("siren" if first.parent.name != "siren" else "dog_bark") / first.name
    shutil.copyfile(second, other)
    second.unlink()
    second.symlink_to(copy / "nowhere.jpg")
    clips = {clip.key: clip for clip in us8k.clips(copy, "random70")}
    assert clips[first.stem].video == first
    assert not clips[second.stem].video.is_file()
    assert "is in two folders" in caplog.text


def test_select_clips_flags_recordings_divided_by_a_published_split(urbansound_bad: Path) -> None:
    for split_by, leaks in (("scmrl70", True), ("random70", False)):
        clips, _ = select_clips(us8k.clips(urbansound_bad, split_by), SelectConfig())
        torn = {clip.group for clip in clips if "split_leak" in clip.flags}
        splits = {group: {clip.split for clip in clips if clip.group == group} for group in torn}
        assert all(len(held) > 1 for held in splits.values())
        assert bool(torn) == leaks
