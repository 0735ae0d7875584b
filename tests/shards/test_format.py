from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from webdataset.writer import TarWriter

from avdata.errors import AvdataError
from avdata.shards.format import EXTENSIONS
from avdata.shards.members import decode_npy, read_members
from avdata.shards.reader import read_index, read_info
from avdata.shards.writer import ShardWriter

members = some.dictionaries(some.sampled_from(EXTENSIONS), some.binary(max_size=2_000), min_size=1)


@settings(max_examples=40)
@given(some.lists(members, min_size=1, max_size=4))
def test_read_members_returns_what_shard_writer_wrote(samples: list[dict[str, bytes]]) -> None:
    stream = io.BytesIO()
    writer = ShardWriter(stream, "train/x.tar")
    for number, sample in enumerate(samples):
        writer.add(f"k{number}", sample, {})
    writer.close()
    data = stream.getvalue()
    assert len(data) % 10_240 == 0
    for sample, row in zip(samples, writer.rows, strict=True):
        views = read_members(data[row["offset"] : row["offset"] + row["nbytes"]])
        assert {name: bytes(view) for name, view in views.items()} == sample


@settings(max_examples=40)
@given(some.dictionaries(some.text("Az09_-", min_size=1, max_size=80), members, min_size=1, max_size=4))
def test_shard_writer_writes_the_bytes_of_webdatasets_tar_writer(
    samples: dict[str, dict[str, bytes]],
) -> None:
    stream, reference = io.BytesIO(), io.BytesIO()
    writer = ShardWriter(stream, "train/x.tar")
    tars = TarWriter(reference, user="", group="", mode=0o444, mtime=0, encoder=False)
    for key, sample in samples.items():
        writer.add(key, sample, {})
        tars.write({"__key__": key, **sample})
    writer.close()
    tars.close()
    assert stream.getvalue() == reference.getvalue()


def test_shards_of_a_prepared_dataset_are_the_bytes_of_webdatasets_tar_writer(cremad_set: Path) -> None:
    for path in sorted(cremad_set.glob("*/*.tar")):
        reference = io.BytesIO()
        with TarWriter(reference, user="", group="", mode=0o444, mtime=0, encoder=False) as tars:
            samples: dict[str, dict[str, Any]] = {}
            with tarfile.open(path) as tar:
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    data = tar.extractfile(member)
                    assert data is not None
                    samples.setdefault(key, {"__key__": key})[extension] = data.read()
            for sample in samples.values():
                tars.write(sample)
            tars.close()
        assert path.read_bytes() == reference.getvalue()


@settings(max_examples=40)
@given(some.dictionaries(some.text("Az09_-", min_size=1, max_size=80), members, min_size=1, max_size=4))
def test_shard_writer_rows_have_position_and_checksum_of_the_samples(
    samples: dict[str, dict[str, bytes]],
) -> None:
    stream = io.BytesIO()
    writer = ShardWriter(stream, "train/x.tar")
    for key, sample in samples.items():
        writer.add(key, sample, {"label": 3})
    writer.close()
    data, end = stream.getvalue(), 0
    for key, row in zip(samples, writer.rows, strict=True):
        with tarfile.open(fileobj=io.BytesIO(data[row["offset"] :])) as tar:
            entries = [member for member in tar if member.name.startswith(f"{key}.")]
        assert len(entries) == len(samples[key])
        padded = entries[-1].offset_data + entries[-1].size + -entries[-1].size % tarfile.BLOCKSIZE
        assert (row["offset"], row["nbytes"]) == (end, padded)
        end += padded
        assert row["sha256"] == hashlib.sha256(data[row["offset"] : end]).hexdigest()
        assert (row["label"], row["shard"]) == (3, "train/x.tar")
    assert not any(data[end:])


def test_shard_writer_refuses_what_ustar_cannot_store() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 8**11

    writer = ShardWriter(io.BytesIO(), "train/x.tar")
    with pytest.raises(ValueError, match="name is too long"):
        writer.add("k" * 97, {"cls": b"0"}, {})
    with pytest.raises(ValueError, match="overflow"):
        writer.add("k", {"cls": Huge()}, {})


def test_shards_are_plain_ustar_without_machine_metadata(cremad_set: Path) -> None:
    paths = sorted(cremad_set.glob("*/*.tar"))
    assert paths
    for path in paths:
        with tarfile.open(path) as tar:
            entries = tar.getmembers()
        for member in entries:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o444
            assert member.isreg()
        names = [member.name.partition(".")[2] for member in entries]
        assert names == ["cls", "frames.jpg", "json", "mel.npy"] * (len(entries) // 4)


def test_index_is_sorted_and_has_a_row_per_sample(cremad_set: Path) -> None:
    rows = read_index(cremad_set).to_pylist()
    assert rows == sorted(rows, key=lambda row: (row["shard"], row["offset"]))
    assert len({row["key"] for row in rows}) == len(rows) == 14
    assert all(0.02 < row["av_offset"] < 0.03 and row["av_peak"] > 0.9 for row in rows)


def test_mel_stats_are_those_of_the_train_split(cremad_set: Path) -> None:
    rows = [row for row in read_index(cremad_set).to_pylist() if row["split"] == "train"]
    mels = []
    for row in rows:
        data = (cremad_set / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["nbytes"]]
        mels.append(decode_npy(read_members(data)["mel.npy"]).astype(np.float64))
    stats = read_info(cremad_set)["mel_stats"]
    stacked = np.stack(mels)
    assert np.allclose(stats["mean"], stacked.mean(axis=(0, 1, 3)), atol=1e-9)
    assert np.allclose(stats["std"], stacked.std(axis=(0, 1, 3)), atol=1e-6)


def test_decode_npy_refuses_object_arrays() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(AvdataError, match="Unsupported npy array"):
        decode_npy(memoryview(stream.getvalue()))
