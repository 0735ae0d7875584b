from __future__ import annotations

from pathlib import Path

import pytest
from avdata.recipes import kinetics_sounds as ks

import avdata
from avdata.errors import SourceError, UsageError
from avdata.manifest import load_manifest

TRAIN = "--4-0ihtnBU_000058_000068,10,4\r\n-00nar1nEPc_000033_000043,10,13\r\n"
TEST = "-3Mwkq-7TV4_2,10,23\r\n"


def write_clips(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def write_lists(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "my_train.txt").write_bytes(TRAIN.encode())
    (folder / "my_test.txt").write_bytes(TEST.encode())


def test_labels_are_in_the_order_of_the_published_numbers() -> None:
    assert len(ks.LABELS) == len(set(ks.LABELS)) == 31
    assert sorted(ks.LABELS) == list(ks.LABELS)
    # Labels of the videos of these lists in the annotations of Kinetics-400 and in VGGSound.
    known = {
        3: "chopping wood", 4: "dribbling basketball", 6: "mowing lawn",
        8: "playing bagpipes", 13: "playing harmonica", 17: "playing saxophone",
        18: "playing trombone", 19: "playing trumpet", 24: "shuffling cards", 25: "singing",
        27: "tap dancing", 28: "tapping guitar",
    }  # fmt: skip
    assert {number: ks.LABELS[number] for number in known} == known


def test_manifest_states_the_counts_of_the_published_lists() -> None:
    expected = load_manifest("kinetics-sounds").expected
    assert expected["train"] + expected["val"] == 14_799
    assert expected["test"] == 2_597
    assert expected["clips"] == 14_799 + 2_597
    assert load_manifest("kinetics-sounds").license.publish == "no"


def test_parse_list_reads_the_names_of_train_and_test() -> None:
    assert ks.parse_list(TRAIN + TEST, "it.txt") == [
        ks.Entry("--4-0ihtnBU", 58, "dribbling basketball"),
        ks.Entry("-00nar1nEPc", 33, "playing harmonica"),
        ks.Entry("-3Mwkq-7TV4", 2, "shoveling snow"),
    ]


@pytest.mark.parametrize("row", ["--4-0ihtnBU_58,10,31", "--4-0ihtnBU_58,10", "../../x/y_1,10,3", ""])
def test_parse_list_names_the_line_of_an_invalid_row(row: str) -> None:
    with pytest.raises(SourceError, match=r"Invalid row in it\.txt, line 3"):
        ks.parse_list(f"{TRAIN}{row}\r\n", "it.txt")


@pytest.mark.parametrize("folder", ["train/dribbling basketball", "k400/train", "."])
def test_lists_of_ogmge_need_no_folders_of_classes(tmp_path: Path, folder: str) -> None:
    write_clips(tmp_path, f"{folder}/--4-0ihtnBU_000058_000068.mp4")
    write_lists(tmp_path / "ogmge")
    clips = ks.clips(tmp_path, "ogmge", {})
    assert [(clip.key, clip.label, clip.split == "test") for clip in clips] == [
        ("ks---4-0ihtnBU_000058", "dribbling basketball", False),
        ("ks--00nar1nEPc_000033", "playing harmonica", False),
        ("ks--3Mwkq-7TV4_000002", "shoveling snow", True),
    ]
    assert [clip.video.is_file() for clip in clips if clip.video] == [True, False, False]


def test_lists_are_read_from_the_download_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))
    root = write_clips(tmp_path / "k400", "train/--4-0ihtnBU_000058_000068.mp4")
    with pytest.raises(SourceError, match="List of OGM-GE is missing") as caught:
        ks.clips(root, "ogmge", {})
    assert "avdata download kinetics-sounds" in str(caught.value.hint)
    write_lists(tmp_path / "cache" / "sources" / "kinetics-sounds" / "ogmge")
    assert len(ks.clips(root, "ogmge", {})) == 3


def test_lists_that_were_changed_are_refused(tmp_path: Path) -> None:
    write_clips(tmp_path, "train/--4-0ihtnBU_000058_000068.mp4")
    write_lists(tmp_path / "ogmge")
    with pytest.raises(SourceError, match="is not the published list"):
        avdata.plan("kinetics-sounds", source=tmp_path)


CLASS_FOLDERS = (
    "train/dribbling basketball/aaaaaaaaaaa_000058_000068.mp4",
    "train/dribbling_ball/bbbbbbbbbbb_000001_000011.mp4",
    "val/tickling/ccccccccccc_000000_000010.mp4",
    "kinetics400_test/stomping/ddddddddddd_000002_000012.mp4",
    "train/abseiling/eeeeeeeeeee_000003_000013.mp4",
    "train/typing/fffffffffff_000004_000014.mp4",
)


def test_classes_are_chosen_by_folder_in_the_splits_of_kinetics(tmp_path: Path) -> None:
    write_clips(tmp_path, *CLASS_FOLDERS)
    clips = ks.clips(tmp_path, "kinetics", {})
    assert [(clip.group[0], clip.label, clip.split) for clip in clips] == [
        ("a", "dribbling basketball", "train"), ("b", "dribbling basketball", "train"),
        ("c", "tickling", "val"), ("d", "stomping grapes", "test"),
    ]  # fmt: skip
    more = ks.clips(tmp_path, "kinetics", {"classes": "34"})
    assert [clip.label for clip in more if clip not in clips] == ["typing"]
    assert len(ks.labels(tmp_path, more, {"classes": "34"})) == 34
    with pytest.raises(UsageError, match="Invalid task option classes=32"):
        ks.clips(tmp_path, "kinetics", {"classes": "32"})


def test_classes_are_chosen_by_the_annotations_of_flat_folders(tmp_path: Path) -> None:
    write_clips(tmp_path, "train/aaaaaaaaaaa_000058_000068.mp4", "val/ccccccccccc_000000_000010.mp4")
    with pytest.raises(SourceError, match="no annotations name one") as caught:
        ks.clips(tmp_path, "kinetics", {})
    assert "annotations/" in str(caught.value.hint)
    (tmp_path / "annotations").mkdir()
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "annotations" / "train.csv").write_text(f"{header}singing,aaaaaaaaaaa,58,68,train\n")
    (tmp_path / "annotations" / "val.csv").write_text(f"{header}tickling,ccccccccccc,0,10,validate\n")
    clips = ks.clips(tmp_path, "kinetics", {})
    assert [(clip.label, clip.split) for clip in clips] == [("singing", "train"), ("tickling", "val")]
    (tmp_path / "annotations" / "val.csv").write_text(f"{header}tickling,ccccccccccc,x,10,validate\n")
    with pytest.raises(SourceError, match="Invalid time_start in line 2"):
        ks.clips(tmp_path, "kinetics", {})


def test_clips_rejects_folders_without_clips_or_splits(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no clips of Kinetics"):
        ks.clips(tmp_path, "ogmge", {})
    write_clips(tmp_path, "singing/aaaaaaaaaaa_000058_000068.mp4")
    with pytest.raises(SourceError, match="named train, val or test"):
        ks.clips(tmp_path, "kinetics", {})
