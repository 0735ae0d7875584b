"""Checksum verification with a cache: a file is hashed again only if it has changed.

The cache has one JSON Lines file per root folder, with a line `[path, checksum, bytes, mtime in ns, inode]`
per source file. It is in the cache folder of avdata, so that read-only source folders are cached too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path

from avdata.manifest import FileEntry
from avdata.storage.hashing import hash_file
from avdata.storage.paths import cache_dir
from avdata.storage.place_index import PlaceIndex
from avdata.storage.threads import map_in_threads

logger = logging.getLogger(__name__)


class ChecksumCache:
    """Thread-safe cache of the checksums of the files below a folder; a context manager.

    The records stay in the file of the cache. Memory holds the place of each record.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._path = cache_dir() / "proofs" / f"{name}.jsonl"
        self._places = PlaceIndex()
        self._lock = threading.Lock()
        self._writer: FileIO | None = None
        self._reader: BufferedReader | None = None
        self._index_records()

    def __enter__(self) -> ChecksumCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _index_records(self) -> None:
        start = 0
        try:
            with self._path.open("rb") as lines:
                for line in lines:
                    if (record := _parse(line)) is not None:
                        self._places.add(record[0], start)
                    start += len(line)
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("Cannot read the checksum cache of %s: %s", self._root, error)

    def _find(self, path: str) -> _Record | None:
        """Return the last record of a path. The lock is held."""
        if (start := self._places.find(path)) is None:
            return None
        try:
            if self._reader is None:
                self._reader = self._path.open("rb")
            self._reader.seek(start)
            record = _parse(self._reader.readline())
        except OSError:
            return None
        return record if record and record[0] == path else None  # another path may have the same hash

    def get(self, path: str, *, file: Path | None = None) -> str | None:
        """Return the checksum of a file; None if it is unknown or the file has changed.

        Args:
            path: path below the root.
            file: the file on disk, if `path` is a member of an archive.
        """
        with self._lock:
            record = self._find(path)
        if record is None:
            return None
        try:
            current = (file or self._root / path).stat()
        except OSError:
            return None
        return record[1] if record == _record(path, record[1], current) else None

    def matches(self, entry: FileEntry) -> bool:
        """Return whether the cached checksum is the expected one."""
        return self.get(entry.path) == entry.checksum

    def store(self, path: str, checksum: str, stat: os.stat_result) -> None:
        """Store the checksum of a file with this `stat`; log a warning if that fails."""
        record = _record(path, checksum, stat)
        with self._lock:
            if self._find(path) == record:
                return
            try:
                self._places.add(path, self._append(json.dumps(record)))
            except OSError as error:
                logger.warning("Cannot write the checksum cache of %s: %s", self._root, error)

    def _append(self, line: str) -> int:
        """Append a line, which any number of processes may do at a time; return its place."""
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._path.open("ab", buffering=0)
            # Start with a newline: the last line may be incomplete after a power failure.
            self._writer.write(b"\n")
        data = f"{line}\n".encode()
        self._writer.write(data)
        return self._writer.tell() - len(data)

    def close(self) -> None:
        """Close the files; `get` still works."""
        for file in (self._writer, self._reader):
            if file is not None:
                file.close()
        self._writer = self._reader = None


_Record = tuple[str, str, int, int, int]


def _record(path: str, checksum: str, stat: os.stat_result) -> _Record:
    return path, checksum, stat.st_size, stat.st_mtime_ns, stat.st_ino


def _parse(line: bytes) -> _Record | None:
    """Return a record; None for the incomplete line after a power failure, whose file is hashed again."""
    try:
        path, checksum, *numbers = json.loads(line)
        size, modified, inode = map(int, numbers)
    except (ValueError, TypeError):
        return None
    return str(path), str(checksum), size, modified, inode


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """Result of a checksum verification: paths below the root, in the order of the request.

    Attributes:
        good: files with the expected size and checksum.
        missing: files that are not on disk.
        wrong: files with another size or checksum, and unreadable files.
        hashed: number of files that were read; the checksums of the others were cached.
    """

    good: tuple[str, ...]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    hashed: int


def verify_files(
    root: Path,
    files: Sequence[FileEntry],
    *,
    rehash: bool = False,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> VerificationResult:
    """Verify the sizes and checksums of files; read only files with no cached checksum.

    Args:
        root: folder that the paths are relative to.
        files: expected files.
        rehash: read all files and ignore the cache.
        threads: number of files read in parallel.
        progress: called with the numbers of files and bytes verified so far.
    """
    with ChecksumCache(root) as checksums:
        results: dict[str, str] = {}
        uncached = []
        for facts in files:
            result = _check_cached(root, facts, None if rehash else checksums)
            if result is None:
                uncached.append(facts)
            else:
                results[facts.path] = result
        done = sum(facts.bytes or 0 for facts in files if facts.path in results)
        checked = map_in_threads(lambda facts: _hash_and_check(root, facts, checksums), uncached, threads)
        for facts, result in zip(uncached, checked, strict=True):
            results[facts.path] = result
            done += facts.bytes or 0
            if progress:
                progress(len(results), done)

    def paths_with(kind: str) -> tuple[str, ...]:
        return tuple(facts.path for facts in files if results[facts.path] == kind)

    return VerificationResult(
        paths_with("good"), paths_with("missing"), paths_with("wrong"), hashed=len(uncached)
    )


def _check_cached(root: Path, facts: FileEntry, checksums: ChecksumCache | None) -> str | None:
    try:
        size = (root / facts.path).stat().st_size
    except OSError:
        return "missing"
    if facts.bytes is not None and size != facts.bytes:
        return "wrong"
    return "good" if checksums is not None and checksums.matches(facts) else None


def _hash_and_check(root: Path, facts: FileEntry, checksums: ChecksumCache) -> str:
    path = root / facts.path
    try:
        stat = path.stat()
        algorithm = facts.checksum.partition(":")[0]
        checksum = f"{algorithm}:{hash_file(path, algorithm)}"
    except OSError as error:
        logger.warning("Cannot read %s: %s", path, error)
        return "wrong"
    checksums.store(facts.path, checksum, stat)
    return "good" if checksum == facts.checksum else "wrong"
