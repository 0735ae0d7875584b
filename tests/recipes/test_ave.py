from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from avdata.recipes import ave

from avdata.config.schema import SelectConfig
from avdata.errors import SourceError
from avdata.manifest import load_manifest
from avdata.selection import select_clips

LINES = "Church bell&RUhOCu3LNXM&good&0&10\nMale speech, man speaking&--12UOziMF0&good&4&10\n"


def test_parse_rows_accepts_rows_with_and_without_a_header() -> None:
    assert ave.parse_rows(LINES, "a") == ave.parse_rows(ave.HEADER + "\n" + LINES, "a")
    assert ave.parse_rows(LINES, "a")[1] == ave.Row("Male speech, man speaking", "--12UOziMF0", 4, 10)


def test_parse_rows_names_the_line_number_of_a_malformed_row() -> None:
    with pytest.raises(SourceError, match="line 3"):
        ave.parse_rows(LINES + "Church bell;x;good;0;10\n", "Annotations.txt")


@pytest.mark.parametrize(
    "row", ["Bark&../../x.y&good&0&10", "Bark&abcdefghijk&good&&10", "Bark&abcdefghijk&good&8&99"]
)
def test_parse_rows_rejects_unsafe_names_and_invalid_times(row: str) -> None:
    with pytest.raises(SourceError, match="line 1"):
        ave.parse_rows(row, "trainSet.txt")


def test_make_clips_creates_unique_keys_without_a_leading_dash() -> None:
    row = ave.Row("Bark", "--12UOziMF0", 0, 10)
    clips = ave.make_clips(
        {"train": [row, ave.Row("Banjo", "--12UOziMF0", 0, 10)], "test": [row]}, {}, Path("x")
    )
    assert len({clip.key for clip in clips}) == 3
    assert all(clip.key.startswith("ave-") for clip in clips)
    assert all("multi_label" in clip.flags for clip in clips)


def test_make_clips_flags_an_event_of_zero_length() -> None:
    (clip,) = ave.make_clips({"train": [ave.Row("Bark", "VWi2ENBuTbw", 0, 0)]}, {}, Path("x"))
    assert "zero_length_event" in clip.flags


def test_ave_has_28_labels_followed_by_background() -> None:
    assert len(ave.LABELS) == len(set(ave.LABELS)) == 28
    assert ave.RECIPE.background == "Background"
    assert ave.LABELS[0] == "Church bell"
    assert ave.LABELS[27] == "Mandolin"
    assert ave.RECIPE.label_orders["alphabetical"][0] == "Accordion"


def test_ave_manifest_lists_the_published_counts() -> None:
    expected = load_manifest("ave").expected
    assert expected == {"rows": 4143, "videos": 4097, "train": 3339, "val": 402, "test": 402}
    assert load_manifest("ave").license.publish == "no"


def test_ave_mock_has_the_published_irregularities(ave_bad: Path) -> None:
    clips, _ = select_clips(ave.clips(ave_bad, "official"), SelectConfig())
    flags = Counter(flag for clip in clips for flag in clip.flags)
    assert flags == {"multi_label": 4, "split_leak": 2, "zero_length_event": 1}
    assert any(clip.group.startswith("--") and clip.video.is_file() for clip in clips)


def test_clips_rejects_a_folder_without_split_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no AVE"):
        ave.clips(tmp_path, "official")


@pytest.mark.parametrize(
    ("lists", "video"),
    [
        ("", "AVE/RUhOCu3LNXM.mp4"),
        ("AVE_Dataset", "AVE_Dataset/AVE/RUhOCu3LNXM.mp4"),
        ("data", "AVE/RUhOCu3LNXM.mp4"),
        ("AVE-ECCV18/data", "videos/RUhOCu3LNXM.mp4"),
        ("", "AVE/RUhOCu3LNXM.mkv"),
        ("", "AVE/RUhOCu3LNXM.webm"),
        ("", "AVE/RUhOCu3LNXM_000010_000020.mp4"),
        ("", "AVE/RUhOCu3LNXM_10_20.MP4"),
    ],
)
def test_clips_accepts_the_layouts_of_copies(tmp_path: Path, lists: str, video: str) -> None:
    write_copy(tmp_path, lists, video)
    (clip,) = ave.clips(tmp_path, "official")
    assert (clip.group, clip.video) == ("RUhOCu3LNXM", tmp_path / video)
    assert {path.parent for path in ave.lists(tmp_path, "official")} == {tmp_path / lists}


def write_copy(root: Path, lists: str | None, *videos: str) -> None:
    row = "Church bell&RUhOCu3LNXM&good&0&10\n"
    for name, text in {
        "trainSet.txt": row,
        "valSet.txt": "",
        "testSet.txt": "",
        "Annotations.txt": row,
    }.items():
        if lists is not None:
            (root / lists).mkdir(parents=True, exist_ok=True)
            (root / lists / name).write_text(text)
    for video in videos:
        (root / video).parent.mkdir(parents=True, exist_ok=True)
        (root / video).write_bytes(b"x")


def test_clips_prefers_the_video_named_by_the_id_alone(tmp_path: Path) -> None:
    write_copy(tmp_path, "", "AVE/RUhOCu3LNXM_10_20.mp4", "AVE/RUhOCu3LNXM.mp4", "a/RUhOCu3LNXM_0_10.mp4")
    (clip,) = ave.clips(tmp_path, "official")
    assert clip.video == tmp_path / "AVE" / "RUhOCu3LNXM.mp4"


def test_clips_names_what_a_folder_lacks(tmp_path: Path) -> None:
    write_copy(tmp_path / "videos", None, "RUhOCu3LNXM.mp4")
    with pytest.raises(SourceError, match=r"holds 1 videos, and no lists") as caught:
        ave.clips(tmp_path / "videos", "official")
    assert "trainSet.txt" in str(caught.value.hint)
    write_copy(tmp_path / "lists", "data")
    with pytest.raises(SourceError, match=r"holds the lists of AVE .*, and no videos"):
        ave.clips(tmp_path / "lists", "official")
    (tmp_path / "lists" / "AVE_Dataset.zip").write_bytes(b"PK")
    with pytest.raises(SourceError) as caught:
        ave.clips(tmp_path / "lists", "official")
    assert str(tmp_path / "lists" / "AVE_Dataset.zip") in str(caught.value.hint)
