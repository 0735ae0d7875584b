"""Processes of this machine, and waiting for what they do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], object], timeout: float = 60) -> None:
    """Wait until a condition holds; fail after the timeout, s."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


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
