"""Index of an uncompressed tar: name, offset and size of each regular file, and damage of the tar.

Nothing is extracted. Tar readers end silently at a damaged header or a missing end, so every header is
checked here, and after a damaged one the scan continues at the next valid header. Of a tar in object storage,
only the headers are read, with the small members after them; a member is then one range.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from avdata.errors import QuarantineReason, SourceError
from avdata.storage.atomic import open_partial

_BLOCK = tarfile.BLOCKSIZE

_CHUNK = 4 << 20

_HEAD_BYTES = 8 << 10  # a request for a header of a tar in object storage

_CONTENT_BYTES = 4 << 10  # of a small member, such as a label

_META = re.compile(r"__[^/]*__($|/)")
"""Names that webdataset skips."""

_HEADER_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class TarMember:
    """Regular file in a tar.

    Attributes:
        name: name in the tar. It is never used as a path on disk.
        tar: path of the tar.
        tar_bytes: size of the tar.
        offset: position of the first byte in the tar.
        size: size of the file in bytes.
        url: URL of a tar in object storage, whose bytes are not in the file `tar`; empty for a file.
        content: content of a small member of a tar in object storage, which its header's request returned.
    """

    name: str
    tar: Path
    tar_bytes: int
    offset: int
    size: int
    url: str = ""
    content: bytes | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the tar has all bytes of the file."""
        return self.offset + self.size <= self.tar_bytes


@dataclass(frozen=True, slots=True)
class TarGap:
    """Place where members of a tar may be lost.

    Attributes:
        position: number of members before it.
        reason: code for the clips beside it.
        detail: what is damaged, and at which byte.
    """

    position: int
    reason: QuarantineReason
    detail: str


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Members of a tar in their order, and the places where members may be lost."""

    members: tuple[TarMember, ...]
    gaps: tuple[TarGap, ...]


def index_tar(path: Path, url: str = "") -> TarIndex:
    """Return the index of a tar. Links, devices, folders and sparse files are left out.

    Args:
        path: the tar; for a tar in object storage, a file of its size.
        url: URL of a tar in object storage.

    Raises:
        SourceError: the file cannot be read, or is not an uncompressed tar.
    """
    try:
        with _open_stored(url, path.stat().st_size) if url else path.open("rb") as stream:
            index = _scan(path, stream, url)
    except OSError as error:
        msg = f"Tar cannot be read: {path} ({error.strerror})."
        raise SourceError(msg) from error
    if index.gaps and not index.members:
        msg = f"Not an uncompressed tar: {path} ({index.gaps[0].detail})."
        raise SourceError(msg, hint="Decompress it or download it again, or leave it out of --source.")
    return index


def _open_stored(url: str, nbytes: int) -> BinaryIO:
    from avdata.storage.remote_files import RangeReader  # noqa: PLC0415  # only for object storage

    return io.BufferedReader(RangeReader(url, nbytes), _HEAD_BYTES)


def _scan(path: Path, stream: BinaryIO, url: str) -> TarIndex:
    size = stream.seek(0, os.SEEK_END)
    # `fromtarfile` decodes the headers of all tar formats. It needs a TarFile for its state, and the
    # constructor would raise on a damaged first header.
    state = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * _BLOCK)))
    state.fileobj = stream
    members: list[TarMember] = []
    gaps: list[TarGap] = []
    offset: int | None = 0
    while offset is not None and offset <= size:
        stream.seek(offset)
        block = stream.read(_BLOCK)
        if len(block) < _BLOCK:
            detail = f"the end of the archive is missing at byte {size:,}"
            gaps.append(TarGap(len(members), QuarantineReason.TRUNCATED, detail))
            break
        if not any(block):
            break
        stream.seek(offset)
        info = _read_header(state, offset)
        if info is None:
            detail = f"damaged tar header at byte {offset:,}"
            gaps.append(TarGap(len(members), QuarantineReason.UNREADABLE, detail))
            offset = _find_header(stream, offset + _BLOCK)
            continue
        offset = state.offset
        if info.isreg() and info.sparse is None and not _META.match(info.name):
            content = None
            if url and info.size <= _CONTENT_BYTES and info.offset_data + info.size <= size:
                stream.seek(info.offset_data)
                content = stream.read(info.size)
            members.append(TarMember(info.name, path, size, info.offset_data, info.size, url, content))
    return TarIndex(tuple(members), tuple(gaps))


def _read_header(state: tarfile.TarFile, offset: int) -> tarfile.TarInfo | None:
    """Return the member whose header is at the stream's position; None if the header is damaged."""
    try:
        info = tarfile.TarInfo.fromtarfile(state)
    except _HEADER_ERRORS:
        return None
    return info if info.size >= 0 and state.offset > offset else None


def _find_header(stream: BinaryIO, offset: int) -> int | None:
    """Return the position of the next valid header from `offset` on; None if there is none."""
    stream.seek(offset)
    while chunk := stream.read(_CHUNK):
        for start in range(0, len(chunk) - _BLOCK + 1, _BLOCK):
            if chunk[start + 257 : start + 262] != b"ustar":
                continue
            try:
                tarfile.TarInfo.frombuf(chunk[start : start + _BLOCK], "utf-8", "surrogateescape")
            except _HEADER_ERRORS:
                continue
            return offset + start
        offset += len(chunk)
    return None


def read_chunks(member: TarMember, chunk_bytes: int = _CHUNK) -> Iterator[bytes]:
    """Yield the bytes of a member in chunks.

    Args:
        member: member to read.
        chunk_bytes: size of a chunk; the last one may be smaller.

    Raises:
        SourceError: the tar cannot be read, or is shorter than when it was indexed.
    """
    if member.url:
        yield from _read_stored(member, chunk_bytes)
        return
    left = member.size
    try:
        with member.tar.open("rb") as stream:
            stream.seek(member.offset)
            while left and (chunk := stream.read(min(left, chunk_bytes))):
                left -= len(chunk)
                yield chunk
    except OSError as error:
        msg = f"Source file cannot be read: {member.tar} ({error.strerror})."
        hint = "Run the same command again when the source is available: finished shards are kept."
        raise SourceError(msg, hint=hint) from error
    if left:
        msg = f"Tar changed while it was read: {member.tar} is {left:,} bytes short."
        raise SourceError(msg, hint="Run the same command again.")


def _read_stored(member: TarMember, chunk_bytes: int) -> Iterator[bytes]:
    from avdata.storage.remote_files import read_range  # noqa: PLC0415  # only for object storage

    if member.content is not None:
        yield from [member.content] if member.content else []
        return
    for start in range(0, member.size, chunk_bytes):
        offset, count = member.offset + start, min(chunk_bytes, member.size - start)
        data = read_range(member.url, offset, count)
        yield data if len(data) == count else data[offset : offset + count]


def hash_member(member: TarMember, check: Callable[[bytes], object]) -> str:
    """Return the hexadecimal SHA-256 of a member. Its first chunk is passed to `check`, which may raise."""
    digest = hashlib.sha256()
    chunks = read_chunks(member)
    head = next(chunks, b"")
    check(head)
    digest.update(head)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def copy_member(member: TarMember, path: Path) -> str:
    """Write a member to a file; return its hexadecimal SHA-256.

    Raises:
        SourceError: see `read_chunks`.
        OSError: the file cannot be written.
    """
    digest = hashlib.sha256()
    with open_partial(path) as stream:
        for chunk in read_chunks(member):
            digest.update(chunk)
            stream.write(chunk)
    return digest.hexdigest()
