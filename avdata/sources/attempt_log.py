"""Log of failed attempts and counts of transferred bytes."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import TextIO

from avdata.errors import redact_url
from avdata.sources.types import TransferError

logger = logging.getLogger(__name__)


class AttemptLog:
    """Log of failed attempts as JSON lines (`attempts.jsonl`): time, URL and error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        self.count = 0

    def note(self, path: str, url: str, attempt: int, error: TransferError, wait: float | None) -> None:
        """Append a failed attempt; `wait` is the delay in seconds before the next, None if none."""
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "path": path,
            "url": redact_url(url),
            "attempt": attempt,
            "status": error.status,
            "error": str(error),
            "wait": None if wait is None else round(wait, 2),
        }
        with self._lock:
            self.count += 1
            try:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self.path.open("a", encoding="utf-8", buffering=1)
                self._file.write(json.dumps(record) + "\n")
            except OSError as failure:
                logger.warning("Cannot write %s: %s", self.path, failure)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class TransferStats:
    """Byte counts of all threads: on disk (without discarded bytes) and received."""

    def __init__(self) -> None:
        self.bytes = 0
        self.received = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that were on disk already, or (negative) were discarded."""
        with self._lock:
            self.bytes += count

    def receive(self, count: int) -> None:
        """Count bytes received over the network."""
        with self._lock:
            self.bytes += count
            self.received += count
