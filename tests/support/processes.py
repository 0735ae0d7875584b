"""Processes of this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path


def wait_until_ended(pid: int, timeout: float = 30) -> bool:
    """Return whether a process ends before the timeout, s: a kill takes effect a moment later."""
    deadline = time.monotonic() + timeout
    while is_running(pid) and time.monotonic() < deadline:
        os.sched_yield()
    return not is_running(pid)


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"
