from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tars import clip_bytes, header_offset, overwrite, write_tar
from support.trees import digest_tree

import avdata
from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.pipeline.output_dir import LocalOutput
from avdata.pipeline.planning import estimate_seconds_per_clip, plan_preparation
from avdata.pipeline.shard_job import ShardJob
from avdata.pipeline.tar_files import TarFiles, local_clip
from avdata.shards.reader import read_quarantine
from avdata.sources.checksums import ChecksumCache
from avdata.sources.tar_source import open_tars
from avdata.storage.remote import open_filesystem
from avdata.testing import write_manifest

SETTINGS = {"video": {"size": 32}, "shards": {"samples_per_shard": 3}}


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A folder with two tars of two clips each."""
    for number in range(2):
        samples = {
            f"{number}{clip}": {"cls": b"ab"[clip : clip + 1], "mp4": clip_bytes(2 * number + clip)}
            for clip in range(2)
        }
        write_tar(tmp_path / "raw" / f"train-{number}.tar", samples)
    return tmp_path / "raw"


def jobs(plan: avdata.PreparationPlan, out: Path) -> list[ShardJob]:
    recipe = plan.recipe
    return [
        ShardJob(LocalOutput(out), name, clips, plan.config, recipe.labels, recipe.background)
        for name, clips in plan.jobs
    ]


def test_local_clip_copies_members_and_removes_them(tars: Path, tmp_path: Path) -> None:
    plan = plan_preparation("webdataset", source=tars, config=SETTINGS)
    candidate = plan.jobs[0][1][0]
    with local_clip(candidate, tmp_path / "scratch", QualityConfig()) as clip:
        assert clip.video.read_bytes() in {clip_bytes(seed) for seed in range(4)}
        assert clip.video.parent == tmp_path / "scratch"
        assert clip.video.name == f"{clip.key}.mp4"
    assert not (tmp_path / "scratch").exists()
    assert not candidate.clip.video.exists()


def test_local_clip_rejects_large_and_changed_members(tars: Path, tmp_path: Path) -> None:
    plan = plan_preparation("webdataset", source=tars, config=SETTINGS)
    candidate = plan.jobs[0][1][0]
    assert candidate.video.member is not None
    limited = QualityConfig(max_bytes=99)
    with pytest.raises(MediaError) as caught, local_clip(candidate, tmp_path / "scratch", limited):
        pass
    assert caught.value.reason == QuarantineReason.TOO_LARGE
    overwrite(candidate.video.member.tar, candidate.video.member.offset + 100, b"other")
    with pytest.raises(MediaError) as caught, local_clip(candidate, tmp_path / "scratch", QualityConfig()):
        pass
    assert caught.value.reason == QuarantineReason.CHECKSUM
    assert not (tmp_path / "scratch").exists()


def test_worker_needs_neither_webdataset_nor_torch_for_tars(tars: Path, tmp_path: Path) -> None:
    plan = plan_preparation("webdataset", source=tars, config=SETTINGS)
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs(plan, tmp_path / "out")))
    code = (
        "import pickle, sys; from avdata.pipeline.shard_job import run_shard_job\n"
        "for job in pickle.load(open(sys.argv[1], 'rb')): run_shard_job(job, lambda item: None)\n"
        "print([name for name in ('webdataset', 'torch') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "jobs")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list((tmp_path / "out" / "train").glob("*.tar"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".clip"]


def test_prepare_from_tars_in_object_storage_results_in_identical_bytes(
    bucket: str, tars: Path, tmp_path: Path
) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    files.put(f"{tars}/", f"{base}/", recursive=True)
    for source, out in ((tars, "local"), (f"{bucket}/raw", "remote")):
        avdata.prepare("webdataset", source=source, output=tmp_path / out, config=SETTINGS, workers=0)
    assert digest_tree(tmp_path / "local") == digest_tree(tmp_path / "remote")


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the number of bytes of each object that is read from S3."""
    from s3fs import S3FileSystem

    call, reads = S3FileSystem._call_s3, []

    async def counted(client: Any, method: str, *args: Any, **options: Any) -> Any:
        answer = await call(client, method, *args, **options)
        if method == "get_object":
            reads.append(int(answer["ContentLength"]))
        return answer

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    return reads


def test_index_of_a_stored_tar_is_read_again_only_if_the_tar_changed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))
    files, base = open_filesystem(f"{bucket}/raw")

    def put(key: str) -> None:
        tar = write_tar(tmp_path / "a.tar", {key: {"cls": b"1", "mp4": bytes(9000)}})
        files.put_file(str(tar), f"{base}/a.tar")

    put("a")
    reads = count_reads(monkeypatch)
    first = open_tars(f"{bucket}/raw").samples
    assert reads
    reads.clear()
    assert open_tars(f"{bucket}/raw").samples == first
    assert reads == []
    (cached,) = (tmp_path / "cache" / "tar-indexes").iterdir()
    for damage in (b"", cached.read_bytes()[:-9], b"{}"):
        cached.write_bytes(damage)
        assert open_tars(f"{bucket}/raw").samples == first
        assert reads
        reads.clear()
    put("b")  # of the same size
    assert [sample.key for sample in open_tars(f"{bucket}/raw").samples] == ["b"]
    assert reads
    assert list((tmp_path / "cache" / "tar-indexes").iterdir()) == [cached]


def test_cached_index_of_a_stored_tar_keeps_its_damage(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))
    samples = {f"c{number}": {"cls": b"1", "mp4": bytes(900)} for number in range(4)}
    tar = write_tar(tmp_path / "a.tar", samples)
    overwrite(tar, header_offset(tar, "c1.mp4"), b"\xff" * 512)
    files, base = open_filesystem(f"{bucket}/raw")
    files.put_file(str(tar), f"{base}/a.tar")
    first = open_tars(f"{bucket}/raw").samples
    assert any(sample.damage for sample in first)
    assert open_tars(f"{bucket}/raw").samples == first


@pytest.mark.parametrize("is_listed", [False, True])
def test_prepare_reads_only_the_chosen_members_of_a_stored_tar_unless_its_checksum_is_listed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    video = clip_bytes(1)
    padding = bytes(300_000)
    clips = {f"c{number}": {"cls": b"a", "mp4": video + padding} for number in range(8)}
    write_tar(tmp_path / "raw" / "train-0.tar", clips)
    if is_listed:
        write_manifest(tmp_path / "raw", "webdataset")
    files, base = open_filesystem(f"{bucket}/raw")
    files.put(f"{tmp_path / 'raw'}/", f"{base}/", recursive=True)
    reads = count_reads(monkeypatch)
    settings = {**SETTINGS, "select": {"limit": 1}}
    for source, out in ((tmp_path / "raw", "local"), (f"{bucket}/raw", "remote")):
        avdata.prepare("webdataset", source=source, output=tmp_path / out, config=settings, workers=0)
    assert digest_tree(tmp_path / "local") == digest_tree(tmp_path / "remote")
    member, tar_bytes = len(video + padding), (tmp_path / "raw" / "train-0.tar").stat().st_size
    assert (max(reads) > member) == is_listed
    if is_listed:
        assert sum(reads) >= tar_bytes
    else:  # one member for the plan and for the worker, and 8 KiB for each header
        assert sum(reads) < 2 * member + 16 * (8 << 10) + 10_000 < tar_bytes / 2


def test_prepare_quarantines_the_clips_of_a_tar_with_another_checksum(tars: Path, tmp_path: Path) -> None:
    write_manifest(tars, "webdataset")
    write_tar(tars / "train-1.tar", {"10": {"cls": b"a", "mp4": clip_bytes(9)}})
    done = avdata.prepare("webdataset", source=tars, output=tmp_path / "out", config=SETTINGS, workers=0)
    (row,) = read_quarantine(Path(done.root)).to_pylist()
    assert (row["key"], row["reason"]) == ("10", "checksum_mismatch")
    assert "train-1.tar: sha256:" in row["detail"]
    assert done.samples == 2


def test_tar_files_reads_each_member_once_and_again_with_another_tar(tars: Path, tmp_path: Path) -> None:
    def verify() -> list[str]:
        opened = open_tars(tars)
        with ChecksumCache(tars) as cache:
            files = TarFiles(opened, None, cache)
            paths = [opened.path(sample, "mp4") for sample in opened.samples]
            return [files.verify(path).sha256 for path in paths]

    first = verify()
    changed = clip_bytes(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avdata.pipeline.tar_files.hash_member", lambda member, check: "recomputed")
        assert verify() == first
        write_tar(tars / "train-1.tar", {"10": {"cls": b"a", "mp4": changed}})
        os.utime(tars / "train-1.tar", (1, 1))
        assert verify() == [*first[:2], "recomputed"]


def test_estimate_reads_clips_from_tars(tars: Path) -> None:
    assert estimate_seconds_per_clip(plan_preparation("webdataset", source=tars, config=SETTINGS)) > 0.001


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "lfs_pointer"),
        (b"x", "not_media"),
    ],
)
def test_tar_files_rejects_members_that_are_not_media(
    tars: Path, content: bytes, reason: str, tmp_path: Path
) -> None:
    write_tar(tars / "train-2.tar", {"20": {"cls": b"a", "mp4": content}})
    plan = plan_preparation("webdataset", source=tars, config=SETTINGS)
    assert [(clip.key, str(clip.reason)) for clip in plan.quarantined] == [("20", reason)]
    assert plan.quarantined[0].detail.startswith("train-2.tar/20.mp4: ")
