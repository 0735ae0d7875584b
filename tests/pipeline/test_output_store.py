"""Tests of `--output` and `--source` in object storage, with local S3 and GCS servers."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.trees import digest_tree

import avdata
from avdata.errors import AvdataError, SourceError, UsageError
from avdata.pipeline.output_store import ObjectStoreOutput
from avdata.sources import object_storage
from avdata.sources.object_storage import fetch_source_file, survey_source
from avdata.storage.remote import open_filesystem

SETTINGS = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}
each_store = pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)


def stored(url: str) -> dict[str, str]:
    files, base = open_filesystem(url)
    files.invalidate_cache()
    return {
        path[len(base) :].lstrip("/"): hashlib.sha256(files.cat_file(path)).hexdigest()
        for path in files.find(base)
    }


def prepare(source: Path | str, out: str, **more: Any) -> avdata.PreparedSet:
    return avdata.prepare("cremad", source=source, output=out, config=SETTINGS, workers=0, **more)


@each_store
def test_prepare_writes_identical_bytes_to_object_storage_and_disk(
    bucket: str, cremad_mock: Path, cremad_set: Path
) -> None:
    done = prepare(cremad_mock, f"{bucket}/set")
    assert done.root == f"{bucket}/set"
    assert stored(f"{bucket}/set") == digest_tree(cremad_set)


def test_prepare_writes_identical_bytes_to_a_store_without_atomic_uploads(
    cremad_mock: Path, cremad_set: Path, tmp_path: Path
) -> None:
    prepare(cremad_mock, f"file://{tmp_path}/set")
    assert digest_tree(tmp_path / "set") == digest_tree(cremad_set)


@each_store
def test_prepare_from_object_storage_results_in_identical_bytes(
    bucket: str, cremad_mock: Path, cremad_set: Path
) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    files.put(f"{cremad_mock}/", f"{base}/", recursive=True)
    prepare(f"{bucket}/raw", f"{bucket}/set")
    assert stored(f"{bucket}/set") == digest_tree(cremad_set)


def test_prepare_ignores_folder_markers_in_object_storage(bucket: str, cremad_mock: Path) -> None:
    files, base = open_filesystem(bucket)
    files.put(f"{cremad_mock}/", f"{base}/raw/", recursive=True)
    for marker in ("raw/", "raw/AudioWAV/", "set/"):
        files.call_s3("put_object", Bucket=base, Key=marker, Body=b"")
    prepare(f"{bucket}/raw", f"{bucket}/set")
    assert "dataset.json" in stored(f"{bucket}/set")


def test_prepare_rejects_unsafe_file_names_in_object_storage(bucket: str) -> None:
    files, base = open_filesystem(bucket)
    files.pipe_file(f"{base}/raw/../../../thief", b"words")
    with pytest.raises(SourceError, match=r"Unsafe file name in .*: '\.\./\.\./\.\./thief'"):
        prepare(f"{bucket}/raw", f"{bucket}/set")


@each_store
def test_survey_source_fetches_only_a_replaced_file_of_equal_size(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    for name in ("labels.csv", "clip.wav"):
        files.pipe_file(f"{base}/{name}", b"old")
    stamps = {
        path.name: path.stat() for path in survey_source(f"{bucket}/raw", suffixes=frozenset()).iterdir()
    }
    find = type(files).find

    def later(self: Any, *args: Any, **options: Any) -> Any:
        """Move the modification time by 5 s, because stores round it to seconds."""
        found = find(self, *args, **options)
        facts = found[f"{base}/labels.csv"]
        name = "LastModified" if "LastModified" in facts else "updated"
        date = facts[name]
        moved = (datetime.fromisoformat(date) if isinstance(date, str) else date) + timedelta(seconds=5)
        facts |= {name: moved.isoformat() if isinstance(date, str) else moved}
        return found

    files.pipe_file(f"{base}/labels.csv", b"new")
    monkeypatch.setattr(type(files), "find", later)
    root = survey_source(f"{bucket}/raw", suffixes=frozenset())
    assert (root / "labels.csv").read_bytes() == b"new"
    assert (root / "clip.wav").stat().st_ino == stamps["clip.wav"].st_ino


def test_run_shard_job_fetches_source_files_on_its_node(
    bucket: str, cremad_mock: Path, cremad_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    files.put(f"{cremad_mock}/", f"{base}/", recursive=True)
    from avdata.pipeline.shard_job import run_shard_job

    def elsewhere(function: Any, jobs: Any, *, on_item: Any, **rest: Any) -> Any:
        monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "of another node"))
        for job in jobs:
            yield run_shard_job(job, on_item)

    monkeypatch.setattr("avdata.pipeline.engines.local.run_jobs", elsewhere)
    fetched, fetch = [], object_storage._fetch
    monkeypatch.setattr(
        object_storage, "_fetch", lambda *args: fetched.append(Path(args[1]).suffix) or fetch(*args)
    )
    before = len(list(cremad_mock.rglob("*.*")))
    prepare(f"{bucket}/raw", f"{bucket}/set")
    assert stored(f"{bucket}/set") == digest_tree(cremad_set)
    assert len(fetched) <= before  # each file once


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the source files that are downloaded."""
    names: list[str] = []
    fetch = object_storage._fetch

    def counted(files: Any, remote: str, path: Path, modified: float | None = None) -> None:
        names.append(path.name)
        fetch(files, remote, path, modified)

    monkeypatch.setattr(object_storage, "_fetch", counted)
    return names


def test_plan_of_a_listed_source_fetches_lists_only(
    bucket: str, cremad_mock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    files.put(f"{cremad_mock}/", f"{base}/", recursive=True)
    names = counted_reads(monkeypatch)
    plan = avdata.plan("cremad", source=f"{bucket}/raw", config=SETTINGS)
    assert not [name for name in names if name.endswith((".flv", ".wav"))]
    here = avdata.plan("cremad", source=cremad_mock, config=SETTINGS)
    assert [clip.key for clip in plan.clips] == [clip.key for clip in here.clips]
    assert plan.files == here.files


def test_plan_without_checksums_fetches_only_the_chosen_clips(
    bucket: str, cremad_mock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    files.put(f"{cremad_mock}/", f"{base}/", recursive=True)
    names = counted_reads(monkeypatch)
    config = {**SETTINGS, "select": {"limit": 1}}
    plan = avdata.plan("cremad", source=f"{bucket}/raw", config=config, checksums=False)
    media = [name for name in names if name.endswith((".flv", ".wav"))]
    assert sorted(media) == sorted(Path(file.path).name for file in plan.files)
    assert len(media) == 2
    names.clear()
    avdata.plan("cremad", source=f"{bucket}/raw", config=config, checksums=False)
    assert names == []


def test_file_damaged_in_the_store_is_quarantined_by_the_worker(bucket: str, cremad_mock: Path) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    files.put(f"{cremad_mock}/", f"{base}/", recursive=True)
    path = next(path for path in files.find(base) if path.endswith(".wav"))
    data = bytearray(files.cat_file(path))
    data[-100] ^= 1
    files.pipe_file(path, bytes(data))
    done = prepare(f"{bucket}/raw", f"{bucket}/set", max_quarantine=1.0)
    assert done.quarantined == {"checksum_mismatch": 1}
    files.rm_file(path)
    with pytest.raises(AvdataError, match="Source files changed"):
        prepare(f"{bucket}/raw", f"{bucket}/set")  # the survey has no file that the store lacks


def test_fetch_source_file_replaces_a_stale_local_copy(bucket: str) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    files.pipe_file(f"{base}/clip.wav", b"old")
    fetch_source_file(f"{bucket}/raw", "clip.wav", 3)
    files.pipe_file(f"{base}/clip.wav", b"newer")
    assert fetch_source_file(f"{bucket}/raw", "clip.wav", 5).read_bytes() == b"newer"
    files.pipe_file(f"{base}/clip.wav", b"again")
    sha256 = hashlib.sha256(b"again").hexdigest()
    assert fetch_source_file(f"{bucket}/raw", "clip.wav", 5, sha256=sha256).read_bytes() == b"again"


@pytest.mark.parametrize("bucket", ["s3", pytest.param("gs", marks=pytest.mark.exhaustive)], indirect=True)
def test_prepare_leaves_only_complete_shards_in_a_store_when_killed_and_resumes(
    bucket: str, cremad_mock: Path, cremad_set: Path, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys\n"
        "import avdata, avdata.pipeline.output_store\n"
        "put, done = avdata.pipeline.output_store.ObjectStoreOutput.upload, []\n"
        "def killed(self, part, name):\n"
        "    if name.endswith('.tar'):\n"
        "        done.append(name)\n"
        "    if len(done) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    put(self, part, name)\n"
        "avdata.pipeline.output_store.ObjectStoreOutput.upload = killed\n"
        f"avdata.prepare('cremad', source={str(cremad_mock)!r}, output={bucket + '/set'!r},\n"
        f"    config={SETTINGS!r}, workers=0)\n"
    )
    run = subprocess.run([sys.executable, str(script)], check=False)
    assert run.returncode == -signal.SIGKILL
    whole = digest_tree(cremad_set)
    left = {
        name: digest for name, digest in stored(f"{bucket}/set").items() if not name.startswith(".avdata/")
    }
    assert len(left) == 2
    assert left.items() < whole.items()
    prepare(cremad_mock, f"{bucket}/set")
    assert stored(f"{bucket}/set") == whole


def test_prepare_to_object_storage_skips_shards_in_the_journal(
    bucket: str, cremad_mock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, made = ObjectStoreOutput.commit, []
    limit = 2

    def counted(self: ObjectStoreOutput, shard: str, entry: dict[str, Any]) -> None:
        if len(made) == limit:
            msg = "stopped"
            raise AvdataError(msg)
        made.append(shard)
        commit(self, shard, entry)

    monkeypatch.setattr(ObjectStoreOutput, "commit", counted)
    with pytest.raises(AvdataError, match="stopped"):
        prepare(cremad_mock, f"{bucket}/set")
    first, made, limit = made, [], 1000
    prepare(cremad_mock, f"{bucket}/set")
    assert set(first).isdisjoint(made)


def test_prepare_to_object_storage_keeps_a_finished_dataset_unless_overwritten(
    bucket: str, cremad_mock: Path
) -> None:
    prepare(cremad_mock, f"{bucket}/set")
    before = stored(f"{bucket}/set")
    prepare(cremad_mock, f"{bucket}/set")
    assert stored(f"{bucket}/set") == before
    with pytest.raises(AvdataError, match="Config mismatch"):
        avdata.prepare("cremad", source=cremad_mock, output=f"{bucket}/set", workers=0)
    other = {"video": {"size": 32}, "shards": {"samples_per_shard": 100}}
    avdata.prepare(
        "cremad", source=cremad_mock, output=f"{bucket}/set", config=other, workers=0, overwrite=True
    )
    assert len([name for name in stored(f"{bucket}/set") if name.endswith(".tar")]) == 3


def test_fetch_state_removes_temporary_files_of_ended_processes(bucket: str) -> None:
    store = ObjectStoreOutput(f"{bucket}/set")
    host = store.root.name.rpartition("-")[0]
    # The first number exceeds the largest process id.
    gone, there = (store.root.parent / f"{host}-{number}" for number in (99_999_999, os.getppid()))
    elsewhere = gone.with_name(f"{host}-b-99999999")
    for folder in (gone, there, elsewhere, store.root):
        folder.mkdir(parents=True)
    (store.root / "part").write_bytes(b"half")
    store.fetch_state()
    assert {path.name for path in store.root.parent.iterdir()} == {
        there.name, elsewhere.name, store.root.name,
    }  # fmt: skip
    assert not list(store.root.iterdir())


def test_prepare_rejects_an_object_storage_prefix_with_other_files(bucket: str, cremad_mock: Path) -> None:
    files, base = open_filesystem(f"{bucket}/set")
    files.pipe_file(f"{base}/thesis", b"words")
    with pytest.raises(AvdataError, match="holds no prepared dataset"):
        prepare(cremad_mock, f"{bucket}/set")
    assert list(stored(f"{bucket}/set")) == ["thesis"]


def test_prepare_rejects_an_unknown_url_scheme(cremad_mock: Path) -> None:
    with pytest.raises(UsageError, match="nowhere://set cannot be opened"):
        prepare(cremad_mock, "nowhere://set")


@each_store
def test_open_reads_a_prepared_dataset_by_its_object_storage_url(
    bucket: str, cremad_mock: Path, cremad_set: Path
) -> None:
    prepare(cremad_mock, f"{bucket}/set")
    assert avdata.open(f"{bucket}/set", "train").keys == avdata.open(cremad_set, "train").keys


@each_store
def test_interrupted_upload_leaves_no_object_under_the_final_name(bucket: str, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    store = ObjectStoreOutput(f"{bucket}/set")
    part = tmp_path / "part"
    with part.open("wb") as stream:
        stream.truncate(120 << 20)  # large enough for a multipart upload
    call = "_call_s3" if bucket.startswith("s3") else "_call"
    upload, sent = getattr(store._files, call), []

    async def cut(*args: Any, **more: Any) -> Any:
        sent.append(args)
        # The first two requests succeed. All later ones fail, including the one that aborts the upload.
        if len(sent) > 2:
            raise Cut
        return await upload(*args, **more)

    setattr(store._files, call, cut)
    with pytest.raises(AvdataError, match="Cut"):
        store.upload(part, "train/x.tar")
    setattr(store._files, call, upload)
    assert stored(f"{bucket}/set") == {}
