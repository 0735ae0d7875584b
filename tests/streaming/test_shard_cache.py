"""Shard cache: fetches once per node, verifies, respects its size limit, survives killed processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict, deque
from pathlib import Path

import pytest
from filelock import FileLock
from support.dataset_servers import Handler, Site, unavailable

import avdata
from avdata.errors import AvdataError
from avdata.shards.reader import read_info
from avdata.streaming import shard_cache as shardcache
from avdata.streaming.shard_cache import ShardCache

EPOCH = """
import sys, avdata
import avdata.streaming.dataset
print("ready", flush=True)
sys.stdin.readline()
data = avdata.open(sys.argv[1], "train", shuffle=True, cache=sys.argv[2],
                   rank=int(sys.argv[3]), world_size=int(sys.argv[4]))
for batch in data.loader(2):
    for key, weight in zip(batch.key, batch.weight):
        if weight:
            print(key, flush=True)
"""


def reader(url: str, cache: Path, rank: int = 0, world: int = 1) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", EPOCH, url, cache, str(rank), str(world)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def keys_of(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return out.split()


def read_keys(url: str, cache: Path, **rank: int) -> list[str]:
    data = avdata.open(url, "train", shuffle=True, cache=cache, **rank)
    return [
        key for batch in data.loader(2) for key, weight in zip(batch.key, batch.weight, strict=True) if weight
    ]


def train_shards(root: Path) -> list[dict]:
    return read_info(root)["splits"]["train"]["shards"]


def test_cache_fetches_each_shard_once_for_ranks_of_a_node(
    site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    other = reader(site.url, tmp_path, 0, 2)
    assert other.stdin is not None
    other.stdin.write("go\n")
    other.stdin.flush()
    keys = read_keys(site.url, tmp_path, rank=1, world_size=2) + keys_of(other)
    assert len(keys) == len(set(keys)) == read_info(synthetic_set)["splits"]["train"]["samples"]
    assert sorted(name for name, *_ in site.asked_for(".tar")) == sorted(
        shard["path"] for shard in train_shards(synthetic_set)
    )


def test_cache_discards_the_partial_file_of_a_killed_process(
    site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    halfway, victim = threading.Event(), None
    paths = [shard["path"] for shard in train_shards(synthetic_set)]

    def killed(handler: Handler, content: bytes) -> None:
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        assert victim is not None
        halfway.set()
        victim.kill()
        handler.close_connection = True

    for path in paths[1:]:
        site.faults[path].append(killed)
    victim = reader(site.url, tmp_path)
    with contextlib.suppress(BrokenPipeError):
        victim.communicate("go\n", timeout=300)
    assert halfway.is_set()
    assert victim.returncode == -signal.SIGKILL
    site.faults = defaultdict(deque)
    site.asked.clear()
    after = read_keys(site.url, tmp_path)
    assert len(set(after)) == read_info(synthetic_set)["splits"]["train"]["samples"]
    for shard in train_shards(synthetic_set):
        cached = tmp_path / "shards" / f"{shard['sha256']}.tar"
        assert hashlib.sha256(cached.read_bytes()).hexdigest() == shard["sha256"]
    assert not list(tmp_path.glob("shards/*.part"))


def test_cache_serves_a_second_epoch_without_requests(site: Site, tmp_path: Path) -> None:
    data = avdata.open(site.url, "train", shuffle=True, cache=tmp_path)
    list(data.loader(4))
    site.asked.clear()
    list(avdata.open(site.url, "train", shuffle=True, seed=5, cache=tmp_path).loader(4))
    assert not site.asked_for(".tar")


def test_cache_respects_a_small_limit_and_the_epoch_is_complete(
    site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    largest = max(shard["bytes"] for shard in train_shards(synthetic_set))
    sizes: list[int] = []
    data = avdata.open(site.url, "train", shuffle=True, cache=tmp_path, cache_bytes=2 * largest)
    got = []
    for batch in data.loader(2):
        got += [key for key, weight in zip(batch.key, batch.weight, strict=True) if weight]
        with contextlib.suppress(FileNotFoundError):
            sizes.append(sum(path.stat().st_size for path in tmp_path.glob("shards/*.tar")))
    assert len(got) == len(set(got)) == len(data)
    # Each concurrent fetch evicts for itself, before its data is complete.
    assert max(sizes) <= 2 * largest + 3 * largest


def test_cache_evicts_the_least_recently_used_shard(tmp_path: Path, site: Site, synthetic_set: Path) -> None:
    one, two, three, *_ = train_shards(synthetic_set)
    cache = ShardCache(tmp_path, limit=one["bytes"] + two["bytes"] + three["bytes"] - 1)
    for age, shard in ((200, one), (100, two)):
        path = cache.fetch(f"{site.url}/{shard['path']}", shard["sha256"], shard["bytes"])
        used = path.stat().st_mtime - age
        os.utime(path, (used, used))
    cache.fetch(f"{site.url}/{one['path']}", one["sha256"], one["bytes"])  # used again
    cache.fetch(f"{site.url}/{three['path']}", three["sha256"], three["bytes"])
    assert [shard["sha256"] in cache for shard in (one, two, three)] == [True, False, True]


def test_cache_refetches_a_truncated_shard(tmp_path: Path, site: Site, synthetic_set: Path) -> None:
    shard = train_shards(synthetic_set)[0]
    cache = ShardCache(tmp_path)
    path = cache.fetch(f"{site.url}/{shard['path']}", shard["sha256"], shard["bytes"])
    path.write_bytes(path.read_bytes()[:-512])
    path = cache.fetch(f"{site.url}/{shard['path']}", shard["sha256"], shard["bytes"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]


def test_cache_reports_a_full_disk(
    tmp_path: Path, site: Site, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shardcache.os, "fsync", full)
    shard = train_shards(synthetic_set)[0]
    with pytest.raises(AvdataError, match="The disk is full") as caught:
        ShardCache(tmp_path).fetch(f"{site.url}/{shard['path']}", shard["sha256"], shard["bytes"])
    assert "cache=" in str(caught.value.hint)
    assert len(site.asked_for(".tar")) == 1


def test_cache_names_a_folder_that_cannot_be_created(tmp_path: Path, site: Site) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AvdataError, match=r"Cannot store .* in .*file: Not a directory") as caught:
        avdata.open(site.url, cache=tmp_path / "file")
    assert "cache=" in str(caught.value.hint)


def test_sample_error_names_a_cache_that_cannot_store(tmp_path: Path, site: Site) -> None:
    data = avdata.open(site.url, cache=tmp_path)
    (tmp_path / "shards").write_bytes(b"")
    with pytest.raises(AvdataError, match=r"Cannot read sample \S+ in \S+: Cannot store .* in"):
        next(iter(data.loader(4)))


def test_cache_counts_the_final_size_of_concurrent_fetches(
    tmp_path: Path, site: Site, synthetic_set: Path
) -> None:
    one, two, three, *_ = train_shards(synthetic_set)
    cache = ShardCache(tmp_path, limit=one["bytes"] + two["bytes"] + three["bytes"] - 1)
    asked, go = threading.Event(), threading.Event()

    def delayed(handler: Handler, content: bytes) -> None:
        asked.set()
        go.wait(300)
        handler.reply(206, content)

    def fetch(shard: dict) -> Path:
        return cache.fetch(f"{site.url}/{shard['path']}", shard["sha256"], shard["bytes"])

    fetch(one)
    site.faults[two["path"]].append(delayed)
    beside = threading.Thread(target=fetch, args=[two])
    beside.start()
    assert asked.wait(300)
    fetch(three)
    assert one["sha256"] not in cache
    go.set()
    beside.join()
    assert two["sha256"] in cache


def test_cache_removes_stale_partial_files(tmp_path: Path, site: Site, synthetic_set: Path) -> None:
    shard = train_shards(synthetic_set)[0]
    cache = ShardCache(tmp_path)
    left = tmp_path / "shards" / f"{'0' * 64}.part"
    left.parent.mkdir()
    left.write_bytes(b"half of it")
    cache.fetch(f"{site.url}/{shard['path']}", shard["sha256"], shard["bytes"])
    assert not left.exists()


def test_cache_lock_is_not_held_by_a_forked_process(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with FileLock(lock):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_cache_reads_from_a_read_only_folder(
    tmp_path: Path, site: Site, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    shard = train_shards(synthetic_set)[0]
    path = ShardCache(tmp_path).fetch(f"{site.url}/{shard['path']}", shard["sha256"], shard["bytes"])
    monkeypatch.setattr(shardcache.os, "utime", refused)
    site.always = unavailable
    assert ShardCache(tmp_path).fetch(f"{site.url}/x", shard["sha256"], shard["bytes"]) == path


def test_reader_refetches_a_shard_evicted_before_it_is_open(
    site: Site, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, lost = ShardCache.fetch, []

    def fetched(self: ShardCache, url: str, sha256: str, nbytes: int) -> Path:
        path = fetch(self, url, sha256, nbytes)
        if lost.count(sha256) < 3:
            lost.append(sha256)
            path.unlink()
        return path

    monkeypatch.setattr(ShardCache, "fetch", fetched)
    data = avdata.open(site.url, "train", cache=tmp_path)
    assert [key for batch in data.loader(4) for key in batch.key][: len(data)] == data.keys
    assert len(lost) == 3 * len(train_shards(synthetic_set))


def test_cached_dataset_needs_no_server(site: Site, synthetic_set: Path, tmp_path: Path) -> None:
    data = avdata.open(site.url, "train", cache=tmp_path)
    before = [batch.key for batch in data.loader(4)]
    site.always = unavailable
    assert [batch.key for batch in data.loader(4)] == before
