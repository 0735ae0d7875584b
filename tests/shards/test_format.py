from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from avdata.errors import AvdataError
from avdata.shards.format import EXTENSIONS
from avdata.shards.reader import decode_npy, read_index, read_info, read_members
from avdata.shards.writer import ShardWriter, tar_header

members = some.dictionaries(some.sampled_from(EXTENSIONS), some.binary(max_size=2_000), min_size=1)


@settings(max_examples=40)
@given(some.lists(members, min_size=1, max_size=4))
def test_what_is_written_is_read_back_from_the_indexed_bytes(samples: list[dict[str, bytes]]) -> None:
    stream = io.BytesIO()
    writer = ShardWriter(stream, "train/x.tar")
    for number, sample in enumerate(samples):
        writer.add(f"k{number}", sample, {})
    writer.close()
    data = stream.getvalue()
    assert len(data) % 10_240 == 0
    for sample, row in zip(samples, writer.rows, strict=True):
        got = read_members(data[row["offset"] : row["offset"] + row["nbytes"]])
        assert {name: bytes(held) for name, held in got.items()} == sample


@given(some.text("Az09_-", max_size=100), some.integers(0, 8**11 - 1))
def test_a_header_is_tarfiles_to_the_byte(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_shards_are_plain_ustar_with_nothing_of_this_machine(cremad_set: Path) -> None:
    paths = sorted(cremad_set.glob("*/*.tar"))
    assert paths
    for path in paths:
        with tarfile.open(path) as tar:
            held = tar.getmembers()
        for member in held:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o444
            assert member.isreg()
        names = [member.name.partition(".")[2] for member in held]
        assert names == ["mel.npy", "frames.jpg", "cls", "json"] * (len(held) // 4)


def test_the_index_is_sorted_and_speaks_of_every_sample(cremad_set: Path) -> None:
    rows = read_index(cremad_set).to_pylist()
    assert rows == sorted(rows, key=lambda row: (row["shard"], row["offset"]))
    assert len({row["key"] for row in rows}) == len(rows) == 14
    assert all(0.02 < row["av_offset"] < 0.03 and row["av_peak"] > 0.9 for row in rows)


def test_the_mel_statistics_are_those_of_the_train_split(cremad_set: Path) -> None:
    rows = [row for row in read_index(cremad_set).to_pylist() if row["split"] == "train"]
    mels = []
    for row in rows:
        data = (cremad_set / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["nbytes"]]
        mels.append(decode_npy(read_members(data)["mel.npy"]).astype(np.float64))
    stats = read_info(cremad_set)["mel_stats"]
    stacked = np.stack(mels)
    assert np.allclose(stats["mean"], stacked.mean(axis=(0, 1, 3)), atol=1e-9)
    assert np.allclose(stats["std"], stacked.std(axis=(0, 1, 3)), atol=1e-6)


def test_objects_are_never_unpickled() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(AvdataError, match="not one this format holds"):
        decode_npy(memoryview(stream.getvalue()))
