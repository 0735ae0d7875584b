"""Remote datasets equal local ones: over HTTP with faults, from S3, from the Hub."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.dataset_servers import HUB_SET, Handler, Site, dropped, flipped, served, trickled, unavailable
from support.processes import wait_until
from torch.utils.data import DataLoader

import avdata
from avdata.errors import AvdataError, UnavailableError, UsageError
from avdata.shards.reader import read_index, read_info
from avdata.storage import remote_files
from avdata.storage.hashing import hash_file
from avdata.storage.remote import open_filesystem
from avdata.streaming import prefetch
from avdata.streaming.batch import AVSample


def contents(where: str | Path, cache: Path, **options: object) -> dict[str, tuple]:
    """Return mel, frames and label of a shuffled epoch, by key."""
    # The default number of spans is another for local datasets.
    options = {"canonical_nodes": 8, **options}
    data = avdata.open(where, "train", shuffle=True, seed=1, cache=cache, **options)
    return {
        key: (batch.mel[place], batch.frames[place], int(batch.label[place]))
        for batch in data.loader(4)
        for place, key in enumerate(batch.key)
        if batch.weight[place]
    }


def key_of(sample: AVSample) -> str:
    return sample.key


def is_equal(one: dict[str, tuple], other: dict[str, tuple]) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[key][0], other[key][0]) and torch.equal(one[key][1], other[key][1]) for key in one
    )


def test_open_divides_only_remote_datasets_into_spans(
    site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    local, remote = (
        avdata.open(where, shuffle=True, cache=tmp_path).order for where in (synthetic_set, site.url)
    )
    assert (local.canonical_nodes, local.block) == (1, 131_072)
    assert (remote.canonical_nodes, remote.block) == (8, 16_384)
    chosen = avdata.open(site.url, shuffle=True, canonical_nodes=1, cache=tmp_path).order
    assert chosen == local
    assert avdata.open(synthetic_set, shuffle=True, block=7).order.block == 7


def test_epoch_over_http_equals_the_local_one(site: Site, synthetic_set: Path, tmp_path: Path) -> None:
    assert is_equal(contents(site.url, tmp_path / "a"), contents(synthetic_set, tmp_path / "b"))


@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_epoch_from_object_storage_equals_the_local_one(
    stored_set: str, synthetic_set: Path, tmp_path: Path
) -> None:
    assert is_equal(contents(stored_set, tmp_path / "a"), contents(synthetic_set, tmp_path / "b"))


def test_epoch_from_the_hub_equals_the_local_one(hub: Site, synthetic_set: Path, tmp_path: Path) -> None:
    url = f"hf://datasets/{HUB_SET}"
    assert is_equal(contents(url, tmp_path / "a"), contents(synthetic_set, tmp_path / "b"))
    assert hub.asked_for(".tar")


@pytest.mark.parametrize("fault", [unavailable, dropped, trickled, flipped])
def test_reader_recovers_from_transient_faults(
    fault: object, site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    for path in read_index(synthetic_set)["shard"].unique().to_pylist():
        site.faults[path].append(fault)
    for name in ("dataset.json", "index.parquet"):
        if fault is not flipped:
            site.faults[name].append(fault)
    assert is_equal(contents(site.url, tmp_path / "a"), contents(synthetic_set, tmp_path / "b"))


def test_reader_fetches_each_shard_once_from_a_server_without_ranges(
    site: Site, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(remote_files, "CONNECTIONS", 1)
    site.always = lambda handler, _: handler.reply(
        200, (synthetic_set / site.asked[-1][0]).read_bytes()
    )  # the complete file for every range
    monkeypatch.setattr("avdata.streaming.prefetch.CONCURRENT_FETCHES", 1)
    assert is_equal(contents(site.url, tmp_path / "a"), contents(synthetic_set, tmp_path / "b"))
    shards = read_info(synthetic_set)["splits"]["train"]["shards"]
    assert len(site.asked_for(".tar")) == len(shards)


def test_reader_requests_each_range_of_a_shard_once(
    site: Site, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 10_000)
    contents(site.url, tmp_path)
    for shard in read_info(synthetic_set)["splits"]["train"]["shards"]:
        ranges = sorted((first, end) for _, first, end in site.asked_for(shard["path"]))
        assert [first for first, _ in ranges] == list(range(0, shard["bytes"], 10_000))
        assert ranges[-1][1] == shard["bytes"]


def test_reader_retries_only_the_failed_range(
    site: Site, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 10_000)
    shard = read_info(synthetic_set)["splits"]["train"]["shards"][0]
    site.faults[shard["path"]].append(unavailable)
    contents(site.url, tmp_path)
    assert len(site.asked_for(shard["path"])) == -(-shard["bytes"] // 10_000) + 1


def test_open_names_a_server_that_stays_unavailable(site: Site, tmp_path: Path) -> None:
    site.always = unavailable
    with pytest.raises(AvdataError, match=r"Cannot read \S+dataset.json after 6 attempts: \w+: 503,"):
        avdata.open(site.url, cache=tmp_path)


def test_skip_does_not_apply_to_an_unavailable_server(site: Site, tmp_path: Path) -> None:
    data = avdata.open(site.url, on_error="skip", cache=tmp_path)
    samples = iter(data)
    next(samples)
    site.always = unavailable
    for rest in (samples, iter(data.loader(4))):
        with pytest.raises(AvdataError, match=r"Cannot read \S+ after 6 attempts"):
            list(rest)


def test_open_sends_the_password_of_a_url(site: Site, synthetic_set: Path, tmp_path: Path) -> None:
    def guarded(handler: Handler, content: bytes) -> None:
        expected = f"Basic {base64.b64encode(b'me:secret').decode()}"
        is_allowed = handler.headers.get("Authorization") == expected
        handler.reply(200 if is_allowed else 401, content if is_allowed else b"")

    site.always = guarded
    data = avdata.open(site.url.replace("://", "://me:secret@"), "train", cache=tmp_path / "a")
    assert data.keys == avdata.open(synthetic_set, "train").keys
    with pytest.raises(AvdataError, match="401"):
        avdata.open(site.url, cache=tmp_path / "b")


def test_open_uses_the_credentials_of_an_aws_profile(
    stored_set: str, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    files = type(open_filesystem(stored_set)[0])
    files.clear_instance_cache()
    with pytest.raises(AvdataError, match="NoCredentialsError") as caught:
        avdata.open(stored_set, cache=tmp_path / "a")
    assert "credentials" in str(caught.value.hint)
    files.clear_instance_cache()
    remote_files._filesystem.cache_clear()
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    data = avdata.open(stored_set, "train", cache=tmp_path / "b")
    assert data.keys == avdata.open(synthetic_set, "train").keys


@pytest.mark.parametrize(
    ("url", "prefix"), [("http://talk.invalid", ""), ("gs://talk", "/download/storage/v1/b/talk/o")]
)
def test_open_uses_the_proxy_of_the_environment(
    url: str, prefix: str, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Site(synthetic_set, prefix)) as proxy:
        for name, value in {
            "http_proxy": proxy.url, "no_proxy": "", "NO_PROXY": "", "STORAGE_EMULATOR_HOST": "http://gs.invalid",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        type(open_filesystem(url)[0]).clear_instance_cache()
        data = avdata.open(url, "train", cache=tmp_path)
    assert data.keys == avdata.open(synthetic_set, "train").keys


def test_cache_reads_s3_with_all_its_connections(
    bucket: str, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = prefetch.CONCURRENT_FETCHES * remote_files.CONNECTIONS
    together = threading.Barrier(connections, timeout=60)

    def waits(handler: Handler, content: bytes) -> None:
        try:
            together.wait()
        except threading.BrokenBarrierError:
            content = b""
        handler.reply(206 if content else 404, content)

    with served(Site(synthetic_set, f"/{bucket[5:]}")) as site:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
        type(open_filesystem(bucket)[0]).clear_instance_cache()
        site.always = waits
        with ThreadPoolExecutor(connections) as pool:
            reads = [
                pool.submit(remote_files.read_range, f"{bucket}/dataset.json", 0, 9)
                for _ in range(connections)
            ]
    assert {read.result() for read in reads} == {(synthetic_set / "dataset.json").read_bytes()[:9]}


def test_open_uses_a_password_in_a_url_and_redacts_it(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = site.url.replace("://", "://me:secret@")
    data, messages = avdata.open(url, cache=tmp_path / "a"), []
    with pytest.raises(UsageError) as caught:
        avdata.open(url, "nothing", cache=tmp_path / "b")
    messages.append(f"{caught.value} {caught.value.hint}")
    for broken in (flipped, unavailable, lambda handler, _: handler.reply(404, b"")):
        site.always = broken
        for action in (lambda: data[0], lambda: next(iter(data)), lambda: avdata.open(url, cache=tmp_path)):
            with pytest.raises(AvdataError) as failed:
                action()
            messages.append(f"{failed.value} {failed.value.hint}")
    assert "127.0.0.1" in messages[-1]
    assert "secret" not in "\n".join([*messages, caplog.text])


def test_open_does_not_retry_missing_files(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with (
        served(Site(empty)) as site,
        pytest.raises(AvdataError, match=r"Cannot read \S+dataset.json") as caught,
    ):
        avdata.open(site.url, cache=tmp_path / "cache")
    assert "attempts" not in str(caught.value)
    assert "Check the URL" in str(caught.value.hint)


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
@pytest.mark.parametrize("status", [401, 403])
def test_open_does_not_retry_refused_access(
    status: int, bucket: str, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Site(synthetic_set, f"/download/storage/v1/b/{bucket[5:]}/o")) as site:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.url)
        site.always = lambda handler, _: handler.reply(status, b'{"error": {"message": "not for you"}}')
        with pytest.raises(AvdataError, match=r"Cannot read \S+dataset.json: ") as caught:
            avdata.open(bucket, cache=tmp_path)
        assert len(site.asked) == 1
    assert "credentials" in str(caught.value.hint)


def test_reader_refuses_a_changed_remote_shard(synthetic_set: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(synthetic_set, tmp_path / "set")
    path = read_info(changed)["splits"]["train"]["shards"][0]["path"]
    blob = bytearray((changed / path).read_bytes())
    blob[5000] ^= 1
    (changed / path).write_bytes(blob)
    with (
        served(Site(changed)) as site,
        pytest.raises(AvdataError, match=rf"Checksum mismatch of \S+{path}") as caught,
    ):
        contents(site.url, tmp_path / "cache")
    assert "changed after it was indexed" in str(caught.value.hint)


def test_open_reads_the_new_version_if_published_meanwhile(
    site: Site, synthetic_set: Path, synthetic_other: Path, tmp_path: Path
) -> None:
    old = (synthetic_other / "dataset.json").read_bytes()
    site.faults["dataset.json"].append(lambda handler, _: handler.reply(200, old))
    data = avdata.open(site.url, "train", cache=tmp_path)
    assert data.keys == avdata.open(synthetic_set, "train").keys


def test_getitem_detects_a_version_published_since_opening(
    synthetic_set: Path, synthetic_other: Path, tmp_path: Path
) -> None:
    with served(Site(synthetic_set)) as site:
        data = avdata.open(site.url, "train", cache=tmp_path)
        site.root = synthetic_other
        avdata.open(site.url, "train", cache=tmp_path)
        with pytest.raises(AvdataError, match=r"Checksum mismatch of index.parquet") as caught:
            data[0]
    assert "Open the dataset again" in str(caught.value.hint)


def test_find_fetches_only_the_bytes_of_a_remote_sample(
    site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    row = next(row for row in read_index(synthetic_set).to_pylist() if row["split"] == "val")
    data = avdata.open(site.url, "val", cache=tmp_path)
    found = data.find(row["key"])
    assert site.asked_for(".tar") == [(row["shard"], row["offset"], row["offset"] + row["nbytes"])]
    assert torch.equal(found.mel, avdata.open(synthetic_set, "val").find(row["key"]).mel)


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_dataloader_fetches_each_remote_shard_once(
    site: Site, synthetic_set: Path, tmp_path: Path, workers: int
) -> None:
    data = avdata.open(site.url, "train", shuffle=True, cache=tmp_path)
    for _ in range(2):
        got = list(DataLoader(data, batch_size=None, num_workers=workers, collate_fn=key_of))
        assert sorted(got) == sorted(data.keys)
    shards = read_info(synthetic_set)["splits"]["train"]["shards"]
    assert sorted(name for name, *_ in site.asked_for(".tar")) == sorted(shard["path"] for shard in shards)


@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_torch_dataloader_forks_after_object_storage_was_read(
    stored_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    data = avdata.open(stored_set, "train", cache=tmp_path)
    got = DataLoader(
        data, batch_size=None, num_workers=2, collate_fn=key_of, multiprocessing_context="fork", timeout=60
    )
    assert sorted(got) == sorted(data.keys)


def test_getitem_refuses_a_remote_sample_with_another_checksum(site: Site, tmp_path: Path) -> None:
    data = avdata.open(site.url, "val", cache=tmp_path)
    site.always = flipped
    with pytest.raises(AvdataError, match="Checksum mismatch of bytes"):
        data[0]


def test_loader_fetches_only_the_remaining_shards_on_resume(
    site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    def loader(cache: str) -> object:
        return avdata.open(site.url, "train", cache=tmp_path / cache).loader(4)

    first = loader("one")
    steps = iter(first)
    seen = [next(steps).key for _ in range(len(first) - 1)]
    site.asked.clear()
    second = loader("two")
    second.load_state_dict(first.state_dict())
    rest = {key for batch in second for key in batch.key}
    shard_of = {row["key"]: row["shard"] for row in read_index(synthetic_set).to_pylist()}
    assert len(rest) == 4
    assert not rest & {key for keys in seen for key in keys}
    assert {name for name, *_ in site.asked_for(".tar")} == {shard_of[key] for key in rest}


def test_ranks_of_two_nodes_fetch_only_shards_of_their_spans(
    site: Site, synthetic_set: Path, tmp_path: Path
) -> None:
    fetched = []
    for rank in range(2):
        site.asked.clear()
        data = avdata.open(
            site.url, "train", canonical_nodes=2, rank=rank, world_size=2, cache=tmp_path / str(rank)
        )
        list(data.loader(2))
        fetched.append({name for name, *_ in site.asked_for(".tar")})
    shards = read_info(synthetic_set)["splits"]["train"]["shards"]
    # In the order of the index, two spans have at most one shard in common.
    assert len(fetched[0] & fetched[1]) <= 1
    assert fetched[0] | fetched[1] == {shard["path"] for shard in shards}


@pytest.mark.parametrize(
    "where", ["pipe:cat x", "pipe://cat x", "ssh://host/x", "shell://rm", "https+pipe://x"]
)
def test_open_refuses_urls_that_run_a_program(where: str) -> None:
    with pytest.raises(UsageError, match="Unsupported URL scheme"):
        avdata.open(where)


@pytest.fixture
def many_shards(synthetic_set: Path, tmp_path: Path) -> Path:
    """A dataset of 300 shards, which are the same file under 300 names."""
    root, info = tmp_path / "many", read_info(synthetic_set)
    (root / "train").mkdir(parents=True)
    first, table = info["splits"]["train"]["shards"][0], read_index(synthetic_set)
    rows = [row for row in table.to_pylist() if row["shard"] == first["path"]][:2]
    names = [f"train/part-{number:05d}.tar" for number in range(300)]
    for name in names:
        os.link(synthetic_set / first["path"], root / name)
    repeated = [{**row, "shard": name} for name in names for row in rows]
    pq.write_table(pa.Table.from_pylist(repeated, table.schema), root / "index.parquet")
    info["splits"] = {
        "train": {**info["splits"]["train"], "shards": [{**first, "path": name} for name in names]}
    }
    index = root / "index.parquet"
    info["index"] = {"bytes": index.stat().st_size, "sha256": hash_file(index)}
    (root / "dataset.json").write_text(json.dumps(info))
    return root


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import avdata
data = avdata.open(sys.argv[1], shuffle=True, on_error="skip")
loader = data.loader(16)
real = sum(int(batch.weight.sum()) for batch in loader)
print(real == data.num_samples, len(loader.skipped), sum(1 for sample in data if sample.weight) == real)
unfinished = iter(loader)
next(unfinished)
"""


def test_loader_reads_more_shards_than_descriptors_and_ends_without_noise(many_shards: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, many_shards], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True 0 True\n", "")


def test_reader_releases_maps_beyond_its_limit(
    many_shards: Path, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avdata.streaming.shard_reader.MAX_MAPS", 3)
    data = avdata.open(many_shards)
    frames = [sample.frames for sample in data]
    mapped = Path("/proc/self/maps").read_text().count(str(many_shards))
    expected = avdata.open(synthetic_set)
    assert mapped == 3
    assert all(torch.equal(frames[number], expected[number % 2].frames) for number in range(len(frames)))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("step", ["open", "map"])
def test_skip_does_not_apply_to_errors_of_the_environment(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    data = avdata.open(synthetic_set, on_error="skip")

    def fails(*_: object, **__: object) -> None:
        if step == "open":
            raise OSError(code, os.strerror(code))
        msg = f"unable to mmap 8 bytes from file <x>: {os.strerror(code)} ({code})"
        raise RuntimeError(msg)

    monkeypatch.setattr(*((os, "open", fails) if step == "open" else (torch, "from_file", fails)))
    loader = data.loader(4)
    for action in (lambda: next(iter(loader)), lambda: next(iter(data))):
        with pytest.raises(UnavailableError, match=os.strerror(code)):
            action()
    assert not loader.skipped


def test_skip_does_not_apply_to_exhausted_memory(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        msg = "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"
        raise RuntimeError(msg)

    monkeypatch.setattr("avdata.streaming.collate.decode_npy", fails)
    with pytest.raises(UnavailableError, match="can't allocate memory"):
        next(iter(avdata.open(synthetic_set, on_error="skip")))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_interrupted_during_a_stalled_read_leaves_no_thread_and_can_start_again(
    site: Site, tmp_path: Path, num_workers: int
) -> None:
    stalled, released = threading.Event(), threading.Event()

    def stall(handler: Handler, content: bytes) -> None:
        stalled.set()
        released.wait(60)

    data = avdata.open(site.url, "train", cache=tmp_path)
    site.always = stall
    before = set(threading.enumerate())
    interrupt = threading.Thread(
        target=lambda: stalled.wait(60) and os.kill(os.getpid(), signal.SIGINT), name="interrupt"
    )
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(data.loader(4, num_workers=num_workers))
        # The interrupt may come while a thread is being started, so that it cannot be joined yet.
        others = {thread for thread in before if thread.name.startswith("avdata")}
        wait_until(lambda: {t for t in threading.enumerate() if t.name.startswith("avdata")} <= others, 20)
    finally:
        released.set()
        site.always = None
    assert sum(len(batch.key) for batch in data.loader(4, num_workers=num_workers)) >= len(data)
