from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from avdata.recipes import webdataset as recipe
from support.tars import clip_bytes, header_offset, truncate, write_tar

import avdata
from avdata.errors import AvdataError, SourceError, UsageError
from avdata.pipeline.planning import plan_preparation
from avdata.shards.reader import read_index, read_info, read_quarantine
from avdata.sources.tar_source import open_tars
from avdata.testing import Scene, scene_frame, write_image, write_wav

SETTINGS = {"video": {"size": 32}}
VIDEO = {"mp4": b"\0\0\0\x18ftypmp42"}
"""Start of a video: plans read no more."""


def clips(root: Path | str, **options: str) -> list[avdata.Clip]:
    return list(recipe.clips(open_tars(root), "task-option", options))


def write_clips(root: Path, name: str, facts: Mapping[str, Mapping[str, Any]], **members: bytes) -> None:
    samples = {key: {"json": json.dumps(dict(values)).encode(), **VIDEO} for key, values in facts.items()}
    write_tar(root / name, {key: {**sample, **members} for key, sample in samples.items()})


def test_prepare_reads_label_group_and_split_as_stock_webdataset_does(tmp_path: Path) -> None:
    mock = avdata.mock("webdataset", tmp_path / "raw", clips=8)
    options = {"label": "json:label", "group": "json:speaker", "split": "json:split"}
    done = avdata.prepare(
        "webdataset", source=f"{mock}/{{train,val,test}}-0000.tar", output=tmp_path / "out",
        config=SETTINGS, task_options=options, workers=0,
    )  # fmt: skip
    rows = {row["key"]: row for row in read_index(done.root).to_pylist()}
    expected = {}
    for path in sorted(mock.glob("*.tar")):
        with path.open("rb") as stream:
            files = wds.tariterators.tar_file_iterator(stream)
            for sample in wds.tariterators.group_by_keys({**file, "__url__": ""} for file in files):
                expected[sample["__key__"]] = json.loads(sample["json"])
    assert rows.keys() == expected.keys()
    for key, facts in expected.items():
        row = rows[key]
        assert (row["label_name"], row["group"], row["split"]) == (
            facts["label"], facts["speaker"], facts["split"],
        )  # fmt: skip
    info = read_info(done.root)
    assert info["labels"] == ["clap", "knock", "ring"]
    assert info["config"]["select"]["task_options"] == options
    assert avdata.verify(done.root).problems == ()


def test_clip_in_a_tar_has_the_bytes_of_the_same_clip_in_a_folder(tmp_path: Path) -> None:
    mock = avdata.mock("webdataset", tmp_path / "raw", clips=4)
    folder = tmp_path / "files"
    for path in mock.glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")

    def listed(root: Path, split_by: str) -> list[avdata.Clip]:
        return [
            avdata.Clip(path.stem, "a", path.stem, "train", path, path.with_suffix(".flac"))
            for path in sorted(root.glob("*.mp4"))
        ]

    files = avdata.Recipe("folder", 1, "Folder", ("a",), {"one": ""}, "one", listed, "none:none")
    config = {**SETTINGS, "audio": {"flac": True}}
    for name, source, out in (("webdataset", mock, "a"), (files, folder, "b")):
        avdata.prepare(name, source=source, output=tmp_path / out, config=config, checksums=False, workers=0)  # type: ignore[arg-type]
    first, second = members(tmp_path / "a"), members(tmp_path / "b")
    assert len(first) == 3 * 4
    assert first == second
    # The flash is at 1.0 s: in the second of four steps of 0.64 s each, and the beep is there too.
    rows = read_index(tmp_path / "a").to_pylist()
    assert all(abs(row["av_offset"]) < 0.001 for row in rows)
    mels = [np.load(io.BytesIO(data)) for name, data in first.items() if name.endswith(".mel.npy")]
    assert all(mel.max((1, 2)).argmax() == 1 for mel in mels)


def members(root: Path) -> dict[str, bytes]:
    """Return the arrays, images and audio of a prepared dataset by name."""
    found = {}
    for path in root.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith((".mel.npy", ".frames.jpg", ".flac")):
                    found[info.name] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return found


def test_prepare_quarantines_only_the_cut_clip_of_a_truncated_tar(tmp_path: Path) -> None:
    samples = {f"c{number}": {"cls": b"0", "mp4": clip_bytes(number)} for number in range(3)}
    path = write_tar(tmp_path / "raw" / "train.tar", samples)
    truncate(path, header_offset(path, "c2.mp4") + 4000)
    done = avdata.prepare("webdataset", source=path, output=tmp_path / "out", config=SETTINGS, workers=0)
    assert {row["key"] for row in read_index(done.root).to_pylist()} == {"c0", "c1"}
    (row,) = read_quarantine(Path(done.root)).to_pylist()
    assert (row["key"], row["reason"]) == ("c2", "truncated")


def test_prepare_accepts_images_with_audio(tmp_path: Path) -> None:
    scene = Scene(seconds=1.0, size=(64, 48))
    write_image(tmp_path / "a.jpg", scene_frame(scene, 0))
    write_wav(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16_000) / 5).astype(np.float32), 16_000)
    sample = {"jpg": (tmp_path / "a.jpg").read_bytes(), "wav": (tmp_path / "a.wav").read_bytes()}
    write_tar(tmp_path / "raw" / "train.tar", {"a": {**sample, "txt": b"sine\n"}})
    done = avdata.prepare(
        "webdataset", source=tmp_path / "raw", output=tmp_path / "out", config=SETTINGS,
        task_options={"label": "txt"}, workers=0,
    )  # fmt: skip
    (row,) = read_index(done.root).to_pylist()
    assert (row["label_name"], row["flags"]) == ("sine", ["frames_are_static"])


def test_thumbnails_are_no_videos_of_clips_that_lack_one(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train.tar", {"a": {**VIDEO, "jpg": b"x", "cls": b"0"}, "b": {"jpg": b"x", "cls": b"0"}}
    )
    first, second = clips(tmp_path)
    assert (first.video.name, second.video.name) == ("a.mp4", "b.mp4")
    assert not first.is_image
    assert clips(tmp_path, video="jpg")[0].is_image


def test_several_videos_in_a_clip_need_the_option(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"a": {"mp4": b"1", "depth.mp4": b"2", "cls": b"0", "wav": b"3"}})
    with pytest.raises(
        SourceError, match=r"Several video members in clip 'a' of train\.tar: depth\.mp4, mp4"
    ):
        clips(tmp_path)
    (clip,) = clips(tmp_path, video=".MP4")
    assert (clip.video.name, clip.audio and clip.audio.name) == ("a.mp4", "a.wav")
    assert clips(tmp_path, video="depth.mp4")[0].video.name == "a.depth.mp4"


@pytest.mark.parametrize(
    ("values", "options", "names", "labels"),
    [
        (["10", "9", "x"], {}, ["10", "9", "x"], ["9", "10", "x"]),
        (["1", "0", "1"], {"labels": "zero, one"}, ["one", "zero", "one"], ["zero", "one"]),
        (["b", "a", "b"], {"labels": "b,a,c"}, ["b", "a", "b"], ["b", "a", "c"]),
        (["1", "0", "0"], {"labels": "classes.txt"}, ["dog", "cat", "cat"], ["cat", "dog"]),
    ],
)
def test_labels_come_from_the_data_or_from_given_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[str],
    options: dict[str, str],
    names: list[str],
    labels: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("classes.txt").write_text("cat\ndog\n\n")
    samples = {str(number): {**VIDEO, "cls": value.encode()} for number, value in enumerate(values)}
    source = write_tar(tmp_path / "tars" / "train.tar", samples)
    assert [clip.label for clip in clips(source, **options)] == names
    plan = plan_preparation("webdataset", source=source, task_options=options)
    assert list(plan.recipe.labels) == labels


def test_labels_are_read_from_classes_txt_beside_the_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"a": {**VIDEO, "cls": b"1"}})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    plan = plan_preparation("webdataset", source=tmp_path)
    assert (plan.recipe.labels, plan.clips[0].label) == (("cat", "dog"), "dog")
    write_tar(tmp_path / "train.tar", {"a": {**VIDEO, "txt": b"1"}})
    plan = plan_preparation("webdataset", source=tmp_path, task_options={"label": "txt"})
    assert plan.recipe.labels == ("1",)


def test_plan_rejects_a_label_that_the_given_names_lack(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"a": {**VIDEO, "cls": b"2"}})
    with pytest.raises(AvdataError, match="Unknown label '2' of the clip a"):
        plan_preparation("webdataset", source=tmp_path, task_options={"labels": "cat,dog"})
    with pytest.raises(UsageError, match="empty or repeated"):
        plan_preparation("webdataset", source=tmp_path, task_options={"labels": "cat,cat"})
    with pytest.raises(UsageError, match="Label names cannot be read"):
        plan_preparation("webdataset", source=tmp_path, task_options={"labels": "nowhere.txt"})


@pytest.mark.parametrize(
    ("option", "splits"),
    [
        ({}, ["train", "val", "test"]),
        ({"split": "path"}, ["train", "val", "test"]),
        ({"split": "path:{split}/*/*.tar"}, ["train", "val", "test"]),
        ({"split": "path:?-{split}.tar"}, ["test", "train", "val"]),
        ({"split": "val"}, ["val"] * 3),
        ({"split": "json:split"}, ["train", "test", "val"]),
    ],
)
def test_split_comes_from_path_field_or_constant(
    tmp_path: Path, option: dict[str, str], splits: list[str]
) -> None:
    for key, folder, tar, split in (
        ("a", "train/x", "0-testing", "train"), ("b", "validation/x", "0-train", "TEST"),
        ("c", "test/x", "0-dev", "valid"),
    ):  # fmt: skip
        write_clips(tmp_path, f"{folder}/{tar}.tar", {key: {"split": split}}, cls=b"0")
    if option.get("split") in {None, "path"}:
        for path in tmp_path.glob("*/x/*.tar"):
            path.rename(path.with_name("0000.tar"))
    assert [clip.split for clip in clips(tmp_path, **option)] == splits


def test_hash_split_keeps_groups_together_at_80_10_10(tmp_path: Path) -> None:
    facts = {f"{number:04d}": {"speaker": f"s{number // 3}"} for number in range(1500)}
    write_clips(tmp_path, "0000.tar", facts, cls=b"0")
    found = clips(tmp_path, group="json:speaker")
    splits: dict[str, set[str]] = {}
    for clip in found:
        splits.setdefault(clip.group, set()).add(clip.split)
    assert len(splits) == 500
    assert all(len(names) == 1 for names in splits.values())
    shares = Counter(clip.split for clip in found)
    assert abs(shares["train"] / 1500 - 0.8) < 0.05
    assert abs(shares["val"] / 1500 - 0.1) < 0.04
    assert found == clips(tmp_path, group="json:speaker", split="hash")


def test_split_options_that_cannot_work_are_rejected(tmp_path: Path) -> None:
    write_clips(tmp_path, "0000.tar", {"a": {"split": "extra"}}, cls=b"0")
    with pytest.raises(SourceError, match=r"Tar path without a split: 0000\.tar"):
        clips(tmp_path, split="path")
    with pytest.raises(SourceError, match=r"Unknown split 'extra' of clip 'a' of 0000\.tar"):
        clips(tmp_path, split="json:split")
    for option in ("path:*.tar", "json"):
        with pytest.raises(UsageError, match="Invalid task option split="):
            clips(tmp_path, split=option)


def test_repeated_keys_get_a_reason_or_the_prefix_of_their_tar(tmp_path: Path) -> None:
    for tar in ("train/0.tar", "train/1.tar", "val/0.tar"):
        write_clips(tmp_path, tar, {"a": {}, "b/c": {}}, cls=b"0")
    write_clips(tmp_path, "val/1.tar", {"b_c": {}}, cls=b"0")
    found = clips(tmp_path)
    assert [clip.key for clip in found if not clip.excluded] == ["a", "b_c"]
    reasons = {clip.key: str(clip.excluded_reason) for clip in found if clip.excluded}
    assert reasons == dict.fromkeys(
        ["train_1_a", "train_1_b_c", "val_0_a", "val_0_b_c", "val_1_b_c"], "duplicate_key"
    )
    keys = [clip.key for clip in clips(tmp_path, key="tar") if not clip.excluded]
    assert keys == [
        "train_0_a", "train_0_b_c", "train_1_a", "train_1_b_c", "val_0_a", "val_0_b_c", "val_1_b_c",
    ]  # fmt: skip


def test_a_repeated_key_takes_no_key_of_another_clip(tmp_path: Path) -> None:
    for tar, key in (("0.tar", "a"), ("1.tar", "a"), ("2.tar", "1_a")):
        write_clips(tmp_path, tar, {key: {}}, cls=b"0")
    assert {clip.key: clip.excluded is None for clip in clips(tmp_path)} == {
        "a": True, "1_a": True, "1_a-2": False,
    }  # fmt: skip


def test_clips_without_a_value_are_quarantined_unless_all_lack_it(tmp_path: Path) -> None:
    write_clips(tmp_path, "0.tar", {"a": {"emotion": "joy"}, "b": {"mood": "joy", "age": 3}})
    found = clips(tmp_path, label="json:emotion")
    assert [(clip.key, clip.label, clip.excluded) for clip in found] == [
        ("a", "joy", None),
        ("b", "", "Field emotion missing in the json of clip 'b' of 0.tar"),
    ]
    with pytest.raises(
        SourceError, match=r"Field moods missing in the json of clip 'a' of 0\.tar\."
    ) as caught:
        clips(tmp_path, label="json:moods")
    assert "Fields there: emotion." in str(caught.value.hint)
    with pytest.raises(SourceError, match=r"Member cls missing in clip 'a' of 0\.tar\.") as caught:
        clips(tmp_path)
    assert "Fields of the json: emotion." in str(caught.value.hint)


def test_tars_without_media_are_rejected(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a": {"cls": b"0", "txt": b"x"}})
    with pytest.raises(SourceError, match="No video or image in the 1 tars") as caught:
        clips(tmp_path)
    assert "cls, txt" in str(caught.value.hint)
    with pytest.raises(SourceError, match="No member has the extension of the task option video=mkv"):
        clips(tmp_path, video="mkv")


def test_unsafe_member_names_never_become_paths(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_tar(raw / "train.tar", {"../../evil": {"cls": b"0", "mp4": clip_bytes()}})
    write_tar(raw / "val.tar", {"/etc/passwd": {"cls": b"0", "mp4": clip_bytes()}})
    done = avdata.prepare("webdataset", source=raw, output=tmp_path / "out", config=SETTINGS, workers=0)
    keys = {row["key"] for row in read_index(done.root).to_pylist()}
    assert keys == {clip.key for clip in clips(raw)}
    assert all(clip.video.parent in {raw / "train.tar", raw / "val.tar"} for clip in clips(raw))
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}


def test_options_of_the_recipe_change_the_config_hash(tmp_path: Path) -> None:
    write_clips(tmp_path, "0.tar", {"a": {"emotion": "joy"}}, cls=b"0")
    plans = [
        plan_preparation("webdataset", source=tmp_path, task_options=options)
        for options in ({}, {"label": "json:emotion"})
    ]
    assert plans[0].config.hash != plans[1].config.hash


def test_mock_is_deterministic(tmp_path: Path) -> None:
    first, second = (avdata.mock("webdataset", tmp_path / name, clips=2) for name in "ab")
    for path in sorted(first.glob("*")):
        assert path.read_bytes() == (second / path.name).read_bytes()
