"""Checksums, computed once: a file that was proven stays proven until its size, mtime or inode changes.

What was proven is remembered in the cache, a JSON line `[path, checksum, bytes, mtime in ns, inode]` a file
and one such list a root folder, so that a source folder that cannot be written to can be proven once as
well.
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
    """What is known of the files below one root; a context manager, safe to use from many threads."""

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
            logger.warning("what was proven below %s cannot be read: %s", self._root, error)
            return
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                # A machine that lost power leaves a torn line; its file is hashed again.
                continue
            if isinstance(record, list) and len(record) == 5:
                yield record

    def get(self, path: str) -> str | None:
        """The checksum of the file as it is on disk now; None when it is not known."""
        remembered = self._known.get(path)
        if remembered is None:
            return None
        try:
            now = (self._root / path).stat()
        except OSError:
            return None
        same = (now.st_size, now.st_mtime_ns, now.st_ino) == remembered[1:]
        return remembered[0] if same else None

    def matches(self, facts: FileEntry) -> bool:
        """Whether the file is known to be exactly what `facts` says, without reading it."""
        return self.get(facts.path) == facts.checksum

    def store(self, path: str, checksum: str, stat: os.stat_result) -> None:
        """Note that the file with this `stat` was hashed; if the note cannot be kept, the run goes on."""
        record = (checksum, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        with self._lock:
            if self._known.get(path) == record:
                return
            self._known[path] = record
            try:
                self._append(json.dumps([path, *record]))
            except OSError as error:
                logger.warning("what was proven below %s cannot be remembered: %s", self._root, error)

    def _append(self, line: str) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
            # An empty line first: a line torn by a loss of power must not swallow the next one.
            self._file.write("\n")
        self._file.write(line + "\n")

    def close(self) -> None:
        """Stop writing; what is known can still be asked."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What became of the files that were to be proven, as paths below the root, in the order asked.

    Attributes:
        good: are what the manifest says.
        missing: are not on disk.
        wrong: have another size or checksum, or cannot be read.
        hashed: how many had to be read; the others were proven before.
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
    """Compare files with what a manifest says of them, reading only those not proven before.

    Args:
        root: the folder the paths are relative to.
        files: what the files should be.
        rehash: read every file, whatever is remembered.
        threads: how many files are read at a time.
        progress: called with the number of files and of bytes done.
    """
    with ChecksumCache(root) as checksums:
        verdicts: dict[str, str] = {}
        unread = []
        for facts in files:
            verdict = _at_a_glance(root, facts, None if rehash else checksums)
            if verdict is None:
                unread.append(facts)
            else:
                verdicts[facts.path] = verdict
        done = sum(facts.bytes or 0 for facts in files if facts.path in verdicts)
        with ThreadPoolExecutor(threads) as pool:
            for facts, verdict in zip(
                unread, pool.map(lambda facts: _read(root, facts, checksums), unread), strict=True
            ):
                verdicts[facts.path] = verdict
                done += facts.bytes or 0
                if progress:
                    progress(len(verdicts), done)

    def those(kind: str) -> tuple[str, ...]:
        return tuple(facts.path for facts in files if verdicts[facts.path] == kind)

    return VerificationResult(those("good"), those("missing"), those("wrong"), hashed=len(unread))


def _at_a_glance(root: Path, facts: FileEntry, checksums: ChecksumCache | None) -> str | None:
    try:
        size = (root / facts.path).stat().st_size
    except OSError:
        return "missing"
    if facts.bytes is not None and size != facts.bytes:
        return "wrong"
    return "good" if checksums is not None and checksums.matches(facts) else None


def _read(root: Path, facts: FileEntry, checksums: ChecksumCache) -> str:
    path = root / facts.path
    try:
        stat = path.stat()
        algorithm = facts.checksum.partition(":")[0]
        checksum = f"{algorithm}:{hash_file(path, algorithm)}"
    except OSError as error:
        logger.warning("%s cannot be read: %s", path, error)
        return "wrong"
    checksums.store(facts.path, checksum, stat)
    return "good" if checksum == facts.checksum else "wrong"
