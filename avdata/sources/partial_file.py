"""Partial file `NAME.part`: hashed while written, renamed after its checksum is verified.

A large file, or one without a known checksum, also has `NAME.part.json` with the URL, ETag, date and size of
its content. With it the next run can check that the server's file is the same, and resume at the byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from avdata.errors import redact_url
from avdata.storage.atomic import NO_FOLLOW, open_partial, write_errors

_STATE_MIN_BYTES = 4 << 20

_THREADED_HASH_MIN_BYTES = 16 << 20

_SYNC_INTERVAL_BYTES = 256 << 20

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteVersion:
    """Version of a remote file that a partial file belongs to; its URL is stored without secrets."""

    url: str
    etag: str | None = None
    modified: str | None = None
    bytes: int | None = None

    def is_of(self, url: str) -> bool:
        """Return whether the file was at this URL, perhaps with another login or signature."""
        return self.url == redact_url(url)

    @property
    def validator(self) -> str | None:
        """Value for `If-Range`: a strong ETag, else the date, else None."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified


class PartialFile:
    """Partial file of one download; not thread-safe.

    Attributes:
        size: bytes on disk.
        version: remote file that the bytes belong to; None if unknown.
        resumed_bytes: whether an earlier run wrote some of the bytes.
    """

    def __init__(self, final: Path, algorithm: str, *, pinned: bool) -> None:
        # str, not Path: creating four Paths takes as long as receiving a small file.
        self.final = str(final)
        self.path = f"{self.final}.part"
        self._state = f"{self.path}.json"
        self._algorithm = algorithm
        self._pinned = pinned
        self._file: int | None = None
        self._hash: _Hash | None = None
        self._synced = 0
        try:
            self.size = os.lstat(self.path).st_size
        except OSError:
            self.size = 0
        self.version = self._read_state() if self.size else None
        self.resumed_bytes = self.size > 0

    def _read_state(self) -> RemoteVersion | None:
        try:
            with open(self._state, encoding="utf-8") as file:
                return RemoteVersion(**json.load(file))
        except (OSError, ValueError, TypeError):
            return None

    def set_version(self, version: RemoteVersion) -> None:
        """Set the remote version of the bytes that follow; store it on disk if resuming needs it."""
        self.version = version
        if not self._pinned or (version.bytes or 0) >= _STATE_MIN_BYTES:
            with write_errors(self._state):
                os.makedirs(os.path.dirname(self._state), exist_ok=True)
                with open_partial(Path(self._state)) as file:
                    file.write(json.dumps(asdict(version)).encode())

    def restart(self) -> None:
        """Discard all bytes."""
        if not self.size and self._file is None:
            return
        with write_errors(self.path):
            self._close()
            for path in (self.path, self._state):
                with suppress(FileNotFoundError):
                    os.unlink(path)
        self.size, self.version, self.resumed_bytes = 0, None, False

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            DiskError: the disk is full or not writable.
        """
        total = (self.version and self.version.bytes) or 0
        with write_errors(self.path, max(total - self.size, len(data))):
            file, hasher = self._open()
            hasher.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            self.size += len(data)
            if self.size - self._synced >= _SYNC_INTERVAL_BYTES:
                # Sync regularly: one fsync of gigabytes at the end would stall all threads.
                os.fsync(file)
                self._synced = self.size

    def _open(self) -> tuple[int, _Hash]:
        if self._file is None or self._hash is None:
            large = self.version is not None and (self.version.bytes or 0) >= _THREADED_HASH_MIN_BYTES
            self._hash = _ThreadedHash(self._algorithm) if large else _Hash(self._algorithm)
            self._file = self._open_file()
            while self.size and (block := os.read(self._file, _BLOCK)):
                self._hash.update(block)
            self._synced = self.size
        return self._file, self._hash

    def _open_file(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | NO_FOLLOW
        try:
            return os.open(self.path, flags, 0o644)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            return os.open(self.path, flags, 0o644)

    def checksum(self) -> str:
        """Return the checksum of all bytes as `algorithm:hex`."""
        with write_errors(self.path):
            _, hasher = self._open()
            return f"{self._algorithm}:{hasher.hexdigest()}"

    def publish(self) -> os.stat_result:
        """Sync the file, rename it to its final name, and return its stat."""
        with write_errors(self.path):
            file, _ = self._open()
            os.fsync(file)
            stat = os.fstat(file)
            self._close()
            os.replace(self.path, self.final)
            if not self._pinned or stat.st_size >= _STATE_MIN_BYTES:
                with suppress(FileNotFoundError):
                    os.unlink(self._state)
        return stat

    def _close(self) -> None:
        if self._hash is not None:
            self._hash.close()
        if self._file is not None:
            os.close(self._file)
        self._file = self._hash = None

    def close(self) -> None:
        """Close the file; its bytes remain for the next run."""
        with write_errors(self.path):
            self._close()


class _Hash:
    """Incremental checksum."""

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        pass


class _ThreadedHash(_Hash):
    """Incremental checksum in a separate thread.

    On a single connection, hashing in the same thread would cost a third of the speed.
    """

    def __init__(self, algorithm: str) -> None:
        super().__init__(algorithm)
        self._blocks: queue.Queue[bytes | None] = queue.Queue(4)
        self._thread = threading.Thread(target=self._work, daemon=True, name="avdata-hash")
        self._thread.start()

    def _work(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._hash.update(block)

    def update(self, data: bytes) -> None:
        self._blocks.put(data)

    def hexdigest(self) -> str:
        self.close()
        return super().hexdigest()

    def close(self) -> None:
        if self._thread.is_alive():
            self._blocks.put(None)
            self._thread.join()
