"""Unpacking archives that are not trusted: members appear under their names when all are safe and whole.

Members are written to a staging folder, each under a `.part` name until it is complete, and moved to their
places at the end. Refused, with the member's name: absolute paths, `..`, links, devices, anything that is
neither file nor folder, the same name twice, more members or bytes than the limits, a member that is not as
long as it says. A run that was killed goes on with the members that are not staged yet (a tar.gz is read
again from its start, as it has no other way in).
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from avdata.errors import SourceError
from avdata.storage.atomic import write_errors

_BLOCK = 1 << 20

_SYNC_THREADS = 8

_OVERHEAD = 16 << 20

_MEMBER_OVERHEAD = 4096

_CORRUPT_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    NotImplementedError,
)

ArchiveKind = Literal["zip", "tar.gz"]


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How much an archive may hold.

    Attributes:
        members: files and folders.
        bytes: of all files together.
        ratio: of the unpacked bytes to the archive's, once they exceed `free_bytes`.
        free_bytes: unpacked bytes below which the ratio does not matter.
    """

    members: int = 1_000_000
    bytes: int = 1 << 40
    ratio: float = 50.0
    free_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class ExtractedFile:
    """A file that was unpacked: its path below the folder, its size, its checksum in the asked algorithm."""

    path: str
    bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    path: PurePosixPath
    bytes: int
    crc: int | None = None


def extract_archive(
    archive: Path,
    kind: ArchiveKind,
    into: Path,
    *,
    staging: Path,
    limits: ArchiveLimits | None = None,
    algorithm: str = "sha256",
    check: Callable[[Path, list[ExtractedFile]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ExtractedFile]:
    """Unpack an archive into a folder, all of it or nothing.

    Args:
        archive: the file; it is only read.
        kind: `zip` or `tar.gz`.
        into: the folder for the members.
        staging: a folder on the same disk, kept from one run to the next.
        limits: what is too much.
        algorithm: of the members' checksums.
        check: called with the staging folder and the members before anything is moved; raises to refuse.
        progress: called with members and bytes done.

    Returns:
        The members that are files, in the archive's order.

    Raises:
        SourceError: the archive is broken, or holds what is refused; nothing is under a final name then.
        DiskError: the disk is full.
    """
    writer = _Writer(archive, staging, limits or ArchiveLimits(), algorithm, progress)
    with _archive_errors(archive):
        members = list(_zip(archive, writer) if kind == "zip" else _tar(archive, writer))
    if not members:
        msg = f"{archive} holds no files"
        raise SourceError(msg)
    if check:
        check(staging, members)
    with write_errors(into):
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(lambda member: _sync(staging / member.path), members))
        for member in members:
            target = into / member.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (staging / member.path).replace(target)
        shutil.rmtree(staging)
    return members


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _zip(archive: Path, writer: _Writer) -> Iterator[ExtractedFile]:
    with zipfile.ZipFile(archive) as opened:
        entries = []
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refused(info.filename, "a link or a device")
            if info.flag_bits & 1:
                raise writer.refused(info.filename, "encrypted")
            # `filename` was cut at a NUL and had its backslashes turned by zipfile: judge what was written.
            name = info.orig_filename
            if info.is_dir():
                writer.admit_folder(name)
            else:
                entries.append((info, writer.admit(name, info.file_size, info.CRC)))
        for info, entry in entries:
            with opened.open(info) as content:
                yield writer.write(entry, content)


def _tar(archive: Path, writer: _Writer) -> Iterator[ExtractedFile]:
    # gzip.open, not tarfile's own reader: that one neither checks the CRC nor notices a missing end.
    with gzip.open(archive) as plain:
        stream = _Metered(plain, writer)
        with tarfile.open(fileobj=stream, mode="r|") as opened:
            for info in opened:
                if info.isdir():
                    writer.admit_folder(info.name)
                    continue
                if not info.isreg() or info.issparse():
                    raise writer.refused(info.name, "a link, a device or a sparse file")
                entry = writer.admit(info.name, info.size)
                content = opened.extractfile(info)
                assert content is not None
                yield writer.write(entry, content)
        while stream.read(_BLOCK):
            pass


class _Metered(io.RawIOBase):
    """A tar's bytes, as long as they belong to members that were admitted, or are few."""

    def __init__(self, stream: gzip.GzipFile, writer: _Writer) -> None:
        self._stream = stream
        self._writer = writer
        self._count = 0

    def read(self, size: int = -1, /) -> bytes:
        block = self._stream.read(size)
        self._count += len(block)
        self._writer.check_overhead(self._count)
        return block


class _Writer:
    """Judges members and stages those that may be written."""

    def __init__(
        self,
        archive: Path,
        staging: Path,
        limits: ArchiveLimits,
        algorithm: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._archive = archive
        self._staging = staging
        self._limits = limits
        self._algorithm = algorithm
        self._progress = progress
        self._size = archive.stat().st_size
        self._seen: set[PurePosixPath] = set()
        self._folders = self._admitted = self._done = self._written = 0

    def refused(self, name: str, what: str) -> SourceError:
        return SourceError(f"{self._archive} is not unpacked: its member {name!r} is {what}")

    def admit_folder(self, name: str) -> None:
        """See that a folder is one that may exist; it is made when a file needs it."""
        self._check_path(name)
        self._folders += 1
        self._check_count(name)

    def admit(self, name: str, size: int, crc: int | None = None) -> _Entry:
        """See that a file may be written, before a byte of it is."""
        path = self._check_path(name)
        if path == PurePosixPath("."):
            raise self.refused(name, "not a plain path")
        if path in self._seen:
            raise self.refused(name, "there twice")
        self._seen.add(path)
        self._check_count(name)
        self._admitted += size
        allowed = min(self._limits.bytes, max(self._limits.free_bytes, self._limits.ratio * self._size))
        if size < 0 or self._admitted > allowed:
            raise self.refused(name, f"beyond the limit of {allowed:,.0f} unpacked bytes")
        return _Entry(name, path, size, crc)

    def check_overhead(self, count: int) -> None:
        """See that what was read so far is members, but for their headers."""
        if count > self._admitted + _OVERHEAD + _MEMBER_OVERHEAD * (len(self._seen) + self._folders):
            msg = f"{self._archive} is not unpacked: it holds {count:,} bytes that are no files"
            raise SourceError(msg)

    def _check_path(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        if "\0" in name or "\\" in name or re.match(r"[A-Za-z]:", name):
            raise self.refused(name, "not a plain path")
        if path.is_absolute() or ".." in path.parts:
            raise self.refused(name, "outside of the folder it is unpacked into")
        return path

    def _check_count(self, name: str) -> None:
        if len(self._seen) + self._folders > self._limits.members:
            raise self.refused(name, f"one more than the limit of {self._limits.members:,} members")

    def write(self, entry: _Entry, content: IO[bytes]) -> ExtractedFile:
        """Stage a member, unless an earlier run did."""
        target = self._staging / entry.path
        with write_errors(target):
            checksum = self._staged(entry, target) or self._copy(entry, content, target)
        self._done += 1
        self._written += entry.bytes
        if self._progress:
            self._progress(self._done, self._written)
        return ExtractedFile(entry.path.as_posix(), entry.bytes, checksum)

    def _staged(self, entry: _Entry, target: Path) -> str | None:
        if entry.crc is None or not target.is_file() or target.stat().st_size != entry.bytes:
            return None
        crc, hasher = 0, hashlib.new(self._algorithm, usedforsecurity=False)
        with target.open("rb") as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
                hasher.update(block)
        return f"{self._algorithm}:{hasher.hexdigest()}" if crc == entry.crc else None

    def _copy(self, entry: _Entry, content: IO[bytes], target: Path) -> str:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        hasher = hashlib.new(self._algorithm, usedforsecurity=False)
        left = entry.bytes
        with part.open("wb") as file:
            # One byte more than declared is asked for: a member that has it lies about its size.
            while block := content.read(min(_BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise self.refused(entry.name, f"larger than the {entry.bytes:,} bytes it declares")
                hasher.update(block)
                file.write(block)
        if left:
            raise self.refused(entry.name, f"cut off {left:,} bytes before its end")
        part.replace(target)
        return f"{self._algorithm}:{hasher.hexdigest()}"


@contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_CORRUPT_ERRORS, OSError) as error:
        # A damaged directory makes zipfile seek to before the file's start, which is an invalid argument.
        if not isinstance(error, _CORRUPT_ERRORS) and error.errno != errno.EINVAL:
            raise
        msg = f"{archive} is broken or cut short: {error}"
        raise SourceError(msg, hint="delete it and download it again") from error
