"""Verification of source files against a manifest, and the statements that a dataset makes about it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

import avdata
from avdata.errors import MediaError, QuarantineReason, SourceError
from avdata.manifest import FileEntry, License, Manifest, load_manifest
from avdata.pipeline.planning import plan_preparation
from avdata.pipeline.validation import LocalFiles
from avdata.shards.reader import read_info
from avdata.testing import Scene, scene_audio, write_wav


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}", bytes=len(content))


def manifest_of(files: Iterable[FileEntry] = (), table: Iterable[FileEntry] = ()) -> Manifest:
    return Manifest(
        name="tiny", title="Tiny", homepage="https://example.org", citation="Nobody, 2026",
        license=License(id="odbl", name="ODbL", publish="yes", note="share alike"),
        files=(*files, *table), tables={"tiny.files.tsv.gz": tuple(table)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    write_wav(path, scene_audio(Scene(seconds=0.5, beeps=(0.1,)), 16_000), 16_000)
    return path.read_bytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("path", ["audio/a.wav", "a.wav", "other/A/a.WAV", "renamed.wav", "a.flac"])
def test_local_files_verify_finds_a_listed_file_in_any_layout(tmp_path: Path, wav: bytes, path: str) -> None:
    files = LocalFiles(tmp_path, manifest_of(table=[entry("audio/a.wav", wav)]), None)
    assert files.verify(write(tmp_path / path, wav)).verified_by == "sha256"


def test_local_files_verify_rejects_a_file_that_a_complete_table_does_not_list(
    tmp_path: Path, wav: bytes
) -> None:
    table = [entry("audio/a.wav", wav), entry("audio/b.wav", b"b" + wav)]
    files = LocalFiles(tmp_path, manifest_of(table=table), None)
    changed = bytearray(wav)
    changed[2000] ^= 1
    cases = {"audio/a.wav": changed, "audio/c.wav": changed, "audio/b.wav": wav}
    for path, content in cases.items():
        with pytest.raises(MediaError) as caught:
            files.verify(write(tmp_path / path, bytes(content)))
        assert caught.value.reason == QuarantineReason.CHECKSUM
        assert hashlib.sha256(content).hexdigest() in caught.value.detail


def test_local_files_verify_accepts_files_beyond_the_manifest_as_unverified(
    tmp_path: Path, wav: bytes
) -> None:
    inline = LocalFiles(tmp_path, manifest_of(files=[entry("list.wav", b"")]), None)
    assert inline.verify(write(tmp_path / "a.wav", wav)).verified_by is None
    converted = LocalFiles(tmp_path, manifest_of(table=[entry("a.flac", b"")]), None)
    assert converted.verify(tmp_path / "a.wav").verified_by is None


def test_dataset_states_how_many_source_files_were_verified(cremad_mock: Path, tmp_path: Path) -> None:
    source = shutil.copytree(cremad_mock, tmp_path / "source")
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"].endswith(".wav")]
    (source / "manifest.json").write_text(json.dumps(manifest | {"mock": False}))
    config = {"video": {"size": 16}}
    root = avdata.prepare("cremad", source=source, output=tmp_path / "out", config=config, workers=0).root
    assert isinstance(root, Path)
    assert read_info(root)["source"]["files"] == {"verified": {"sha256": 14}, "unverified": 14}
    statement = "14 of 28 source files were verified"
    report = avdata.report(root).read_text()
    for text in (report, (root / "README.md").read_text(), (root / "croissant.json").read_text()):
        assert statement in text
        assert "source file was verified" not in text
    assert avdata.verify(root).provenance.startswith(statement)


def test_prepare_quarantines_urbansound8k_audio_that_is_not_the_published(
    urbansound_bad: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(urbansound_bad, tmp_path / "source")
    (source / "manifest.json").unlink()  # leaves the bundled manifest
    (source / "UrbanSound8K.csv").unlink()
    with pytest.raises(SourceError, match=r"checksum_mismatch.*which the manifest does not list"):
        plan_preparation("urbansound8k-av", source=source, config={"select": {"split_by": "random70"}})


def test_urbansound8k_manifest_pins_every_wav_and_the_csv() -> None:
    manifest = load_manifest("urbansound8k-av")
    (wavs,) = manifest.tables.values()
    folds = [sum(f"/fold{fold}/" in entry.path for entry in wavs) for fold in range(1, 11)]
    assert folds == [873, 888, 925, 990, 936, 823, 838, 806, 816, 837]
    assert sum(entry.bytes or 0 for entry in wavs) == 7_088_643_558
    checksums = {entry.path.rpartition("/")[2]: entry.checksum for entry in manifest.files}
    assert checksums["101415-3-0-2.wav"].startswith("sha256:ccc21ebf9d9ca26effe83a99446ae2708fec9381c473e11a")
    assert checksums["UrbanSound8K.csv"] == "md5:5015c37ce7d54c0bb8cd40a0b5ee2074"


def test_ave_manifest_pins_the_four_lists() -> None:
    pinned = {entry.path.rpartition("/")[2]: entry.checksum[:15] for entry in load_manifest("ave").files}
    assert pinned == {
        "Annotations.txt": "sha256:b0aabcea", "testSet.txt": "sha256:e73c25a5",
        "trainSet.txt": "sha256:4f6c37af", "valSet.txt": "sha256:76c3c51b",
    }  # fmt: skip


def test_prepare_refuses_a_list_that_is_not_the_published_one(ave_bad: Path, tmp_path: Path) -> None:
    source = shutil.copytree(ave_bad, tmp_path / "source")
    (source / "manifest.json").unlink()
    with pytest.raises(SourceError, match=r"trainSet\.txt is not the published list") as caught:
        plan_preparation("ave", source=source)
    assert "--no-checksums" in str(caught.value.hint)
    assert plan_preparation("ave", source=source, checksums=False).lists[0].verified_by is None


def test_prepare_accepts_a_published_variant_of_a_list_with_a_warning(
    urbansound_bad: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = shutil.copytree(urbansound_bad, tmp_path / "source")
    manifest = json.loads((source / "manifest.json").read_text())
    listed = next(entry for entry in manifest["files"] if entry["path"] == "UrbanSound8K.csv")
    table = source / "UrbanSound8K.csv"
    published = table.read_bytes()
    changed = published.replace(b"classID,class\n", b"classID,class_name\n")
    assert changed != published
    table.write_bytes(changed)
    listed |= {
        "checksum": f"md5:{hashlib.md5(published).hexdigest()}", "bytes": None,
        "variants": {f"md5:{hashlib.md5(changed).hexdigest()}": "its last column is named class_name"},
    }  # fmt: skip
    (source / "manifest.json").write_text(json.dumps(manifest))
    plan = plan_preparation("urbansound8k-av", source=source)
    assert [(file.path, file.verified_by) for file in plan.lists] == [("UrbanSound8K.csv", "md5")]
    assert "UrbanSound8K.csv is a variant: its last column is named class_name." in caplog.text
