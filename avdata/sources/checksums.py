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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from avdata.manifest import FileEntry
from avdata.storage.hashing import hash_file
from avdata.storage.paths import cache_dir

logger = logging.getLogger(__name__)

CacheRecord = tuple[str, int, int, int]


class ChecksumCache:
    """Thread-safe cache of the checksums of the files below a folder; a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._path = cache_dir() / "proofs" / f"{name}.jsonl"
        self._known: dict[str, CacheRecord] = {}
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        for path, checksum, *numbers in self._read():
            self._known[str(path)] = (str(checksum), int(numbers[0]), int(numbers[1]), int(numbers[2]))

    def __enter__(self) -> ChecksumCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Iterator[list[str | int]]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("Cannot read the checksum cache of %s: %s", self._root, error)
            return
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                # A power failure leaves an incomplete line; its file is hashed again.
                continue
            if isinstance(record, list) and len(record) == 5:
                yield record

    def get(self, path: str, *, file: Path | None = None) -> str | None:
        """Return the checksum of a file; None if it is unknown or the file has changed.

        Args:
            path: path below the root.
            file: the file on disk, if `path` is a member of an archive.
        """
        record = self._known.get(path)
        if record is None:
            return None
        try:
            current = (file or self._root / path).stat()
        except OSError:
            return None
        is_unchanged = (current.st_size, current.st_mtime_ns, current.st_ino) == record[1:]
        return record[0] if is_unchanged else None

    def matches(self, entry: FileEntry) -> bool:
        """Return whether the cached checksum is the expected one."""
        return self.get(entry.path) == entry.checksum

    def store(self, path: str, checksum: str, stat: os.stat_result) -> None:
        """Store the checksum of a file with this `stat`; log a warning if that fails."""
        record = (checksum, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        with self._lock:
            if self._known.get(path) == record:
                return
            self._known[path] = record
            try:
                self._append(json.dumps([path, *record]))
            except OSError as error:
                logger.warning("Cannot write the checksum cache of %s: %s", self._root, error)

    def _append(self, line: str) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
            # Start with a newline: the last line may be incomplete after a power failure.
            self._file.write("\n")
        self._file.write(line + "\n")

    def close(self) -> None:
        """Close the file; `get` still works."""
        if self._file is not None:
            self._file.close()
            self._file = None


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
        with ThreadPoolExecutor(threads) as pool:
            for facts, result in zip(
                uncached,
                pool.map(lambda facts: _hash_and_check(root, facts, checksums), uncached),
                strict=True,
            ):
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
