"""Negative and malformed sizes in tar headers are one sentence in every reader, and no endless loop."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import avdata
from avdata.errors import AvdataError, SourceError
from avdata.shards.format import TAR_BLOCK, index_schema, parquet_bytes
from avdata.shards.members import read_members
from avdata.shards.reader import read_info
from avdata.shards.sample import load_sample
from avdata.sources.archives import extract_archive
from avdata.sources.tar_index import index_tar

SIZES = (
    b"-0000001000", b"-0000000001", b"0o000000010", b"0_000000010", b"           ", b"+0000000010",
    b"0000000010 ", b"99999999999", b"77777777777", b"00000000008", b"\0" * 11, b"\x80" + b"\xff" * 10,
    b"\xff" * 11,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """A reader that takes 30 s hangs."""

    def hang(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def with_size(header: bytes, size: bytes) -> bytes:
    """Return a tar header with another size and a valid checksum."""
    changed = bytearray(header[:124] + size + header[135:])
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def header(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("size", SIZES)
def test_read_members_refuses_a_malformed_size(size: bytes) -> None:
    with pytest.raises(AvdataError, match=r"Invalid size in a tar header|is truncated"):
        read_members(with_size(header("a.cls"), size) + bytes(2 * TAR_BLOCK))


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.SYMTYPE, tarfile.DIRTYPE]
)
def test_read_members_refuses_other_types_of_members(kind: bytes) -> None:
    """A pax header could change the size of the next member to a negative one for other readers."""
    with pytest.raises(AvdataError, match="Missing tar header of a regular file"):
        read_members(header("a.cls", kind) + bytes(2 * TAR_BLOCK))


@pytest.fixture(params=[SIZES[0], SIZES[8]], ids=["negative", "huge"])
def damaged(request: pytest.FixtureRequest, cremad_set: Path, tmp_path: Path) -> Path:
    """A set whose first sample has a malformed size, with checksums that match."""
    root = Path(shutil.copytree(cremad_set, tmp_path / "set"))
    info, rows = read_info(root), pq.read_table(root / "index.parquet").to_pylist()
    split = info["splits"]["train"]
    row = next(row for row in rows if row["split"] == "train")
    entry = next(shard for shard in split["shards"] if shard["path"] == row["shard"])
    data = (root / row["shard"]).read_bytes()
    start = row["offset"]
    data = (
        data[:start] + with_size(data[start : start + TAR_BLOCK], request.param) + data[start + TAR_BLOCK :]
    )
    (root / row["shard"]).write_bytes(data)
    row["sha256"] = hashlib.sha256(data[start : start + row["nbytes"]]).hexdigest()
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    index = parquet_bytes(rows, index_schema())
    (root / "index.parquet").write_bytes(index)
    info["index"] = {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
    (root / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    return root


READERS: dict[str, Callable[[Path], object]] = {
    "loader": lambda root: list(avdata.open(root, "train").loader(batch_size=4)),
    "iterator": lambda root: list(avdata.open(root, "train")),
    "inspect": lambda root: load_sample(root, avdata.open(root, "train").keys[0]),
    "export": lambda root: avdata.export(root, root.parent / "exported"),
}


@pytest.mark.parametrize("reader", READERS)
def test_reader_refuses_a_malformed_size(reader: str, damaged: Path) -> None:
    with pytest.raises(AvdataError, match=r"Invalid size in a tar header|is truncated"):
        READERS[reader](damaged)


def test_verify_lists_a_malformed_size(damaged: Path) -> None:
    (problem,) = avdata.verify(damaged).problems
    assert "Invalid size in a tar header" in problem.what or "is truncated" in problem.what


def test_report_lists_a_malformed_size(damaged: Path) -> None:
    page = avdata.report(damaged, damaged / "report.html")
    text = Path(page).read_text(encoding="utf-8")
    assert "Invalid size in a tar header" in text or "is truncated" in text


@pytest.mark.parametrize("size", [SIZES[0], SIZES[1], SIZES[-1]])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_tar_sources_refuse_a_negative_size(size: bytes, kind: bytes, tmp_path: Path) -> None:
    data = with_size(header("a.mp4", kind), size) + bytes(4 * TAR_BLOCK)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match="Not an uncompressed tar"):
        index_tar(tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(SourceError):
        extract_archive(tmp_path / "a.tar.gz", "tar.gz", tmp_path / "out", staging=tmp_path / "staging")
    assert not (tmp_path / "out").exists()


def test_tar_sources_survive_a_negative_size_of_a_pax_header(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.mp4")
        info.pax_headers = {"size": "-1536"}
        tar.addfile(info)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    assert index_tar(tmp_path / "a.tar").gaps
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(SourceError):
        extract_archive(tmp_path / "a.tar.gz", "tar.gz", tmp_path / "out", staging=tmp_path / "staging")
