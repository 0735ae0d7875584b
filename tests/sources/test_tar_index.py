from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from support.tars import BLOCK, header_offset, overwrite, truncate, write_tar

from avdata.errors import QuarantineReason, SourceError
from avdata.sources.tar_index import copy_member, hash_member, index_tar, read_chunks

SAMPLES = {f"c{number}": {"cls": b"1", "mp4": bytes([number]) * 1500} for number in range(3)}


def names(path: Path) -> list[str]:
    return [member.name for member in index_tar(path).members]


def test_index_tar_finds_the_bytes_that_tarfile_reads(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    index = index_tar(path)
    assert index.gaps == ()
    with tarfile.open(path) as tar:
        expected = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    assert {member.name: b"".join(read_chunks(member, 100)) for member in index.members} == expected


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index_tar_reads_all_tar_formats(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "a.tar"
    long = "d" * 90 + "/" + "n" * 90 + ".mp4"
    with tarfile.open(path, "w", format=kind) as tar:
        for name in ("a.mp4", long, "ü.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert names(path) == ["a.mp4", long, "ü.mp4"]
    assert index_tar(path).gaps == ()


def test_index_tar_leaves_out_links_devices_folders_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("dir", tarfile.DIRTYPE), ("a.mp4", tarfile.SYMTYPE), ("b.mp4", tarfile.LNKTYPE),
            ("c.mp4", tarfile.CHRTYPE), ("d.mp4", tarfile.FIFOTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("__meta__/x.mp4", "../../e.mp4"):
            tar.addfile(tarfile.TarInfo(name))
    assert names(path) == ["../../e.mp4"]


def test_index_tar_marks_a_member_whose_end_is_missing(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    truncate(path, header_offset(path, "c2.mp4") + BLOCK + 700)
    index = index_tar(path)
    assert [member.name for member in index.members if not member.is_complete] == ["c2.mp4"]


@pytest.mark.parametrize("extra", [0, 100])
def test_index_tar_finds_a_missing_end_of_archive(tmp_path: Path, extra: int) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    truncate(path, header_offset(path, "c2.mp4") + extra)
    index = index_tar(path)
    assert len(index.members) == 5
    (gap,) = index.gaps
    assert (gap.position, gap.reason) == (5, QuarantineReason.TRUNCATED)


@pytest.mark.parametrize("name", ["c0.cls", "c1.cls", "c2.mp4"])
def test_index_tar_continues_after_a_damaged_header(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    everything = names(path)
    offset = header_offset(path, name)
    overwrite(path, offset + 124, b"77777777777")  # the size
    index = index_tar(path)
    assert [member.name for member in index.members] == [other for other in everything if other != name]
    (gap,) = index.gaps
    assert (gap.position, gap.reason) == (everything.index(name), QuarantineReason.UNREADABLE)
    assert f"byte {offset:,}" in gap.detail


@pytest.mark.parametrize(
    "content",
    [b"", b"words", gzip.compress(bytes(5000), mtime=0), b"\xff" * 5000],
    ids=["empty", "text", "gzip", "bytes"],
)
def test_index_tar_rejects_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"Not an uncompressed tar: .*a\.tar"):
        index_tar(path)


def test_index_tar_accepts_an_empty_tar(tmp_path: Path) -> None:
    assert names(write_tar(tmp_path / "a.tar", {})) == []


def test_copy_member_writes_the_bytes_and_returns_their_sha256(tmp_path: Path) -> None:
    member = index_tar(write_tar(tmp_path / "a.tar", SAMPLES)).members[3]
    digest = copy_member(member, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == SAMPLES["c1"]["mp4"]
    assert (
        digest == hash_member(member, lambda head: None) == hashlib.sha256(SAMPLES["c1"]["mp4"]).hexdigest()
    )


def test_read_chunks_raises_if_the_tar_became_shorter_or_disappeared(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    member = index_tar(path).members[-1]
    truncate(path, member.offset + 10)
    with pytest.raises(SourceError, match="1,490 bytes short"):
        list(read_chunks(member))
    path.unlink()
    with pytest.raises(SourceError, match=r"cannot be read: .*a\.tar"):
        list(read_chunks(member))
