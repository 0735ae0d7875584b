"""Shards that change while a dataset is open: one error in place of SIGBUS, and no wrong data."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.dataset_servers import Site, served

import avdata
from avdata.errors import AvdataError
from avdata.shards.reader import read_index
from avdata.streaming import parts, shard_reader
from avdata.streaming.shard_cache import ShardCache


@pytest.fixture
def dataset(synthetic_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set, tmp_path / "set"))


def first_row(root: Path) -> dict:
    return next(row for row in read_index(root).to_pylist() if row["split"] == "train")


def flip_mel(path: Path, row: dict) -> None:
    """Change the last byte of a sample's mel, which no header covers."""
    with path.open("r+b") as stream:
        stream.seek(row["offset"] + row["nbytes"] - 1024)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 0x40]))


def exit_code(action: Callable[[], None]) -> int | None:
    """Run a function in a forked process and return its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_raises_for_a_shard_truncated_while_it_is_open(
    workers: int, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_reader, "SIZE_CHECK_INTERVAL_S", 0.0)

    def read() -> None:
        data = avdata.open(dataset, "train")
        list(data.loader(4, num_workers=workers))
        for path in (dataset / "train").glob("*.tar"):
            os.truncate(path, 0)
        with pytest.raises(AvdataError, match=r"Size mismatch of shard .*: 0 bytes, expected"):
            list(data.loader(4, num_workers=workers))
        data = avdata.open(dataset, "val")
        sample = data[0]
        for path in (dataset / "val").glob("*.tar"):
            path.unlink()
        assert torch.equal(data[0].mel, sample.mel)  # its map keeps a removed file

    assert exit_code(read) == 0


def test_reader_checks_the_size_of_a_shard_at_intervals(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = first_row(dataset)["shard"]
    reader, *_ = parts.open_reader(dataset, "train", ShardCache())
    monkeypatch.setattr(shard_reader, "SIZE_CHECK_INTERVAL_S", 3600.0)
    reader.read_shard(shard)
    (dataset / shard).write_bytes(b"")
    reader.read_shard(shard)
    monkeypatch.setattr(shard_reader, "SIZE_CHECK_INTERVAL_S", 0.0)
    with pytest.raises(AvdataError, match="Size mismatch"):
        reader.read_shard(shard)


def test_reader_limits_size_checks_over_all_shards(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "SIZE_CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(shard_reader, "SIZE_CHECK_SPACING_S", 3600.0)
    monkeypatch.setattr(shard_reader, "SIZE_CHECK_BURST_S", 2 * 3600.0)
    checked: list[str] = []
    stat = os.stat

    def counted(path: Any, **options: Any) -> os.stat_result:
        checked.append(str(path))
        return stat(path, **options)

    reader, info, _ = parts.open_reader(dataset, "train", ShardCache())
    shards = [shard["path"] for shard in info["splits"]["train"]["shards"]]
    for shard in shards:
        reader.read_shard(shard)
    monkeypatch.setattr(os, "stat", counted)
    for shard in shards:
        reader.read_shard(shard)
    assert len(shards) > 3
    assert [path for path in checked if path.endswith(".tar")] == [str(dataset / name) for name in shards[:3]]


def test_open_verifies_shards_on_request(dataset: Path) -> None:
    row = first_row(dataset)
    flip_mel(dataset / row["shard"], row)
    assert avdata.open(dataset, "train")[0].key == row["key"]
    data = avdata.open(dataset, "train", verify_shards=True)
    with pytest.raises(AvdataError, match=rf"Checksum mismatch of shard .*{row['shard']}"):
        data[0]
    assert avdata.open(dataset, "val", verify_shards=True)[0].key


def test_open_fetches_a_damaged_shard_of_the_cache_again(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = first_row(dataset)
    with served(Site(dataset)) as site:
        expected = [batch.mel for batch in avdata.open(site.url, "train", cache=tmp_path / "cache").loader(4)]
        for path in (tmp_path / "cache" / "shards").glob("*.tar"):
            flip_mel(path, row)
        unverified = avdata.open(site.url, "train", cache=tmp_path / "cache", verify_shards=False)
        damaged = [batch.mel for batch in unverified.loader(4)]
        with caplog.at_level(logging.WARNING):
            batches = [
                batch.mel for batch in avdata.open(site.url, "train", cache=tmp_path / "cache").loader(4)
            ]
    assert not all(torch.equal(one, other) for one, other in zip(damaged, expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(batches, expected, strict=True))
    assert "in the cache; fetching it again" in caplog.text


def test_reader_verifies_each_shard_once(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    sha256 = shard_reader.hashlib.sha256
    monkeypatch.setattr(
        shard_reader.hashlib, "sha256", lambda data=b"": hashed.append(len(data)) or sha256(data)
    )
    reader, *_ = parts.open_reader(dataset, "train", ShardCache(), verify=True)
    reader.max_maps = 1
    shards = sorted({row["shard"] for row in read_index(dataset).to_pylist() if row["split"] == "train"})
    for shard in shards * 2:
        reader.read_shard(shard)
    sizes = [(dataset / shard).stat().st_size for shard in shards]
    assert sorted(size for size in hashed if size in sizes) == sorted(sizes)
