"""Exports are deterministic, atomic and resumable, and state their provenance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avdata.cli import app
from avdata.errors import AvdataError, UsageError
from avdata.layouts import EXPORT_LAYOUTS
from avdata.layouts.base import folder_name
from avdata.layouts.run import IDENTITY_FILE, export
from avdata.shards import reader


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", EXPORT_LAYOUTS)
def test_interrupted_export_resumes_to_the_same_bytes(layout_set: Path, tmp_path: Path, layout: str) -> None:
    calls: list[tuple[str, int, int]] = []
    export(layout_set, tmp_path / "once", layout, progress=lambda *call: calls.append(call))
    assert calls == [("export", done, 8) for done in range(1, 9)]
    complete = content(tmp_path / "once")

    def stop(stage: str, done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(layout_set, tmp_path / "twice", layout, progress=stop)
    part = tmp_path / "twice" / "left.123.part"
    part.mkdir()
    second = export(layout_set, tmp_path / "twice", layout)
    assert second.kept > 0
    assert content(tmp_path / "twice") == complete
    third = export(layout_set, tmp_path / "twice", layout)
    assert third.kept == 8
    assert content(tmp_path / "twice") == complete


def test_folder_of_a_clip_appears_complete_or_not_at_all(
    layout_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avdata.layouts.run.fsync", full)
    with pytest.raises(AvdataError, match="The disk is full"):
        export(layout_set, tmp_path, "balancemm")
    assert not list((tmp_path / "visual").iterdir())


def test_export_into_a_folder_with_other_files_replaces_those_of_its_names(
    layout_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "audio").mkdir()
    key = reader.read_index(layout_set, ["key"])["key"][0].as_py()
    (tmp_path / "audio" / f"{key}.wav").write_bytes(b"other")
    (tmp_path / "visual/Image-01-FPS").mkdir(parents=True)
    (tmp_path / "visual/Image-01-FPS" / key).mkdir()
    report = export(layout_set, tmp_path, "ogm-ge")
    assert report.kept == 0
    assert (tmp_path / "audio" / f"{key}.wav").read_bytes().startswith(b"RIFF")
    assert list((tmp_path / "visual/Image-01-FPS" / key).iterdir())


def test_export_into_the_folder_of_another_export_is_refused(layout_set: Path, tmp_path: Path) -> None:
    export(layout_set, tmp_path, "folders", media=("jpg",))
    before = content(tmp_path)
    with pytest.raises(UsageError, match="holds an export of another dataset, or with other options"):
        export(layout_set, tmp_path, "folders", media=("wav",))
    assert content(tmp_path) == before


def test_readme_states_readers_provenance_license_and_commands(layout_set: Path, tmp_path: Path) -> None:
    export(layout_set, tmp_path, "kinetics-sounds", merge_val=True)
    text = (tmp_path / "README.md").read_text()
    for words in (
        "GeWu-Lab/BalanceBenchmark", "16 of 16 source files were verified", "Open Database License",
        "Generated mock media", "--set video.num_frames=6", "--set select.split_by=ogmge",
        "avdata export DATASET kinetics-sounds -o DIR --merge-val", "the train list has the clips of val",
        "IEEE Transactions on Affective Computing",
    ):  # fmt: skip
        assert words in text, words


def test_unsafe_key_is_refused(layout_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = reader.read_index(layout_set)
    keys = index["key"].to_pylist()
    evil = index.set_column(index.column_names.index("key"), "key", [["../../evil", *keys[1:]]])
    monkeypatch.setattr("avdata.layouts.base.read_index", lambda root, columns, info: evil.select(columns))
    with pytest.raises(AvdataError, match="Unsafe key or split"):
        export(layout_set, tmp_path / "out", "ogm-ge")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("label", ["../up", "a/b", "..", "", "a\\b", "C:x"])
def test_folder_name_is_one_component_of_a_path(label: str) -> None:
    name = folder_name(label)
    assert name not in {"", ".", ".."}
    assert not {"/", "\\", ":"} & set(name)


def test_export_suggests_the_closest_layout(layout_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export(layout_set, tmp_path, "ogmge")
    assert "ogm-ge" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_export_command_prints_what_it_wrote(layout_set: Path, tmp_path: Path) -> None:
    words = ["export", str(layout_set), "s-cmrl", "-o", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "output": str(tmp_path / "out"), "layout": "s-cmrl", "samples": 8, "kept": 0,
    }  # fmt: skip


def test_prepare_with_export_keeps_no_shards(cremad_mock: Path, tmp_path: Path) -> None:
    words = [
        "prepare", "cremad", "--source", str(cremad_mock), "--export", "ogm-ge", "-o", str(tmp_path / "out"),
        "--limit", "3", "--set", "video.size=16", "--workers", "0", "--quiet", "--merge-val",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out/audio").iterdir())) == 3
    assert json.loads((tmp_path / "out" / IDENTITY_FILE).read_text())["options"]["merge_val"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not list((tmp_path / "out").rglob("*.tar"))
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert "was exported before" in again.stdout
    assert "--set video.size=16" in (tmp_path / "out/README.md").read_text()
    other = CliRunner().invoke(app, [word for word in words if word != "--merge-val"])
    assert isinstance(other.exception, UsageError)
    assert "another dataset, or with other options" in str(other.exception)
    assert not list((tmp_path / "out").rglob("*.tar"))  # refused before the preparation


def test_prepare_refuses_options_of_an_export_without_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["prepare", "cremad", "-o", str(tmp_path / "out"), "--merge-val"])
    assert isinstance(done.exception, UsageError)
    assert "--merge-val is an option of an export." in str(done.exception)
