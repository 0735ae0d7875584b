"""Safe extraction of untrusted archives: all members or none.

Members are written to a staging folder, each under a `.part` name until it is complete, and moved to their
final paths at the end. Rejected are absolute paths, `..`, reserved folders, names that a file system refuses
or takes for another member's, links, devices, more members or bytes than the limits, and wrong sizes. After
an interruption, extraction continues with the members that are not staged yet; a tar.gz is read again from
its start, because it has no index.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from avdata.errors import SourceError, shorten
from avdata.storage.atomic import open_partial, write_errors
from avdata.storage.paths import check_no_symlinks
from avdata.storage.threads import map_in_threads

_BLOCK = 1 << 20

_SYNC_THREADS = 8

_OVERHEAD = 16 << 20  # bytes of a tar that may belong to no member

_MEMBER_OVERHEAD = 4096

_RESERVED_FOLDERS = frozenset({".avdata", ".git", "git~1"})

_MAX_NAME_BYTES = 255

_MAX_PATH_BYTES = 2048  # systems allow 4096 with the target folder

_CORRUPT_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    NotImplementedError,
)

ArchiveKind = Literal["zip", "tar.gz"]


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits for the content of an archive.

    Attributes:
        members: number of files and folders.
        bytes: total size of all files.
        ratio: extracted bytes per byte of the archive; checked above `free_bytes`.
        free_bytes: extracted bytes up to which `ratio` is not checked.
    """

    members: int = 1_000_000
    bytes: int = 1 << 40
    ratio: float = 50.0
    free_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class ExtractedFile:
    """Extracted file: path relative to the folder, size in bytes, checksum as `algorithm:hex`."""

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
    """Extract an archive into a folder: all members or none.

    Args:
        archive: path of the archive; it is only read.
        kind: `zip` or `tar.gz`.
        into: folder for the members.
        staging: temporary folder on the same disk, kept between interrupted runs.
        limits: limits for the content (default: `ArchiveLimits()`).
        algorithm: hash algorithm for the members' checksums.
        check: called with the staging folder and the members before they are moved; raises to reject them.
        progress: called with the numbers of members and bytes extracted so far.

    Returns:
        The extracted files, in the archive's order.

    Raises:
        SourceError: the archive is corrupt or has a rejected member. No file was moved to its final path.
        DiskError: the disk is full or not writable.
    """
    writer = _Writer(archive, staging, limits or ArchiveLimits(), algorithm, progress)
    with _archive_errors(archive):
        members = list(_zip(archive, writer) if kind == "zip" else _tar(archive, writer))
    if not members:
        msg = f"No files in archive {archive}."
        raise SourceError(msg)
    if check:
        check(staging, members)
    check_no_symlinks(into, (member.path for member in members))
    with write_errors(into):
        list(map_in_threads(lambda member: _sync(staging / member.path), members, _SYNC_THREADS))
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
                raise writer.rejection(info.filename, "a link or a device")
            if info.flag_bits & 1:
                raise writer.rejection(info.filename, "encrypted")
            # Not `filename`: zipfile cuts it at a NUL and replaces its backslashes.
            name = info.orig_filename
            if name.endswith("/"):
                writer.admit_folder(name)
            else:
                entries.append((info, writer.admit(name, info.file_size, info.CRC)))
        for info, entry in entries:
            with opened.open(info) as content:
                yield writer.write(entry, content)


def _tar(archive: Path, writer: _Writer) -> Iterator[ExtractedFile]:
    # gzip.open, not tarfile's own reader: that one does not check the CRC or a missing end.
    with gzip.open(archive) as plain:
        stream = _LimitedStream(plain, writer)
        with tarfile.open(fileobj=stream, mode="r|") as opened:
            for info in opened:
                if info.isdir():
                    writer.admit_folder(info.name)
                    continue
                if not info.isreg() or info.issparse():
                    raise writer.rejection(info.name, "a link, a device or a sparse file")
                entry = writer.admit(info.name, info.size)
                content = opened.extractfile(info)
                assert content is not None
                yield writer.write(entry, content)
        while stream.read(_BLOCK):
            pass


class _LimitedStream(io.RawIOBase):
    """Stream of a tar that limits the bytes that belong to no admitted member."""

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
    """Checks members and writes them to the staging folder."""

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
        self._folded: dict[str, PurePosixPath] = {}
        self._parents: set[PurePosixPath] = set()
        self._folders = self._admitted = self._done = self._written = 0

    def rejection(self, name: str, reason: str) -> SourceError:
        return SourceError(f"Unsafe archive {self._archive}: member {shorten(repr(name))} is {reason}.")

    def admit_folder(self, name: str) -> None:
        """Check a folder; it is created with the first file in it."""
        self._check_path(name)
        self._folders += 1
        self._check_count(name)

    def admit(self, name: str, size: int, crc: int | None = None) -> _Entry:
        """Check a file before any of its bytes is written."""
        path = self._check_path(name)
        if path == PurePosixPath("."):
            raise self.rejection(name, "not a safe path")
        if path in self._seen:
            raise self.rejection(name, "a duplicate")
        if path in self._parents or not self._seen.isdisjoint(path.parents):
            raise self.rejection(name, "both a file and a folder")
        is_part = path.suffix == ".part" and path.with_suffix("") in self._seen
        if is_part or path.with_name(f"{path.name}.part") in self._seen:
            raise self.rejection(name, "named like the partial file of another member")
        self._seen.add(path)
        self._folded.setdefault(_folded(path), path)
        self._parents.update(path.parents)
        self._check_count(name)
        self._admitted += size
        allowed = min(self._limits.bytes, max(self._limits.free_bytes, self._limits.ratio * self._size))
        if size < 0 or self._admitted > allowed:
            raise self.rejection(name, f"beyond the limit of {allowed:,.0f} extracted bytes")
        return _Entry(name, path, size, crc)

    def check_overhead(self, count: int) -> None:
        """Check that the bytes read so far belong to members and their headers."""
        if count > self._admitted + _OVERHEAD + _MEMBER_OVERHEAD * (len(self._seen) + self._folders):
            msg = f"Unsafe archive {self._archive}: too many bytes outside of files ({count:,} bytes read)."
            raise SourceError(msg)

    def _check_path(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        if not name or re.search(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:", name):
            raise self.rejection(name, "not a safe path")
        if path.is_absolute() or ".." in path.parts:
            raise self.rejection(name, "outside of the target folder")
        if not _RESERVED_FOLDERS.isdisjoint(map(_plain_name, path.parts)):
            raise self.rejection(name, "in a reserved folder")
        sizes = [len(os.fsencode(part)) for part in (name, *path.parts)]
        if sizes[0] > _MAX_PATH_BYTES or max(sizes[1:], default=0) > _MAX_NAME_BYTES:
            raise self.rejection(name, "too long a path")
        return path

    def _check_count(self, name: str) -> None:
        if len(self._seen) + self._folders > self._limits.members:
            raise self.rejection(name, f"beyond the limit of {self._limits.members:,} members")

    def write(self, entry: _Entry, content: IO[bytes]) -> ExtractedFile:
        """Write a member to the staging folder, unless an earlier run did."""
        target = self._staging / entry.path
        with write_errors(target):
            checksum = self._staged(entry, target) or self._copy(entry, content, target)
        first = self._staging / self._folded[_folded(entry.path)]
        if first != target and first.exists() and first.samefile(target):
            raise self.rejection(entry.name, "a duplicate of another member on this file system")
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
        with open_partial(part) as file:
            # Read one byte more than declared, to detect a member with a wrong size.
            while block := self._read(content, min(_BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise self.rejection(entry.name, f"larger than its declared {entry.bytes:,} bytes")
                hasher.update(block)
                file.write(block)
        if left:
            raise self.rejection(entry.name, f"truncated by {left:,} bytes")
        part.replace(target)
        return f"{self._algorithm}:{hasher.hexdigest()}"

    def _read(self, content: IO[bytes], size: int) -> bytes:
        try:
            return content.read(size)
        except OSError as error:
            # bz2 and gzip raise it for corrupt data. It must not count as an error of writing.
            raise _corrupt(self._archive, error) from error


def _plain_name(part: str) -> str:
    """Return a name as Windows and macOS may open it: without dots at the end and invisible marks."""
    visible = "".join(character for character in part if unicodedata.category(character) != "Cf")
    return visible.casefold().rstrip(". ")


def _folded(path: PurePosixPath) -> str:
    """Return what is equal for paths that file systems may take for the same: by case, or by composition."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _corrupt(archive: Path, error: BaseException) -> SourceError:
    msg = f"Corrupt or truncated archive {archive}: {error}."
    return SourceError(msg, hint="Delete the archive and download it again.")


@contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_CORRUPT_ERRORS, OSError) as error:
        # With a damaged directory, zipfile seeks before the start of the file (EINVAL).
        if not isinstance(error, _CORRUPT_ERRORS) and error.errno != errno.EINVAL:
            raise
        raise _corrupt(archive, error) from error
