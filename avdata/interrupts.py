"""Ctrl-C and SIGTERM end a command between two writes, never within one.

Schedulers such as Slurm send SIGTERM to every process of a job, then SIGKILL after a grace period.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

EXIT_INTERRUPTED = 130

EXIT_TERMINATED = 143

CHECK_SECONDS = 1.0

_Result = TypeVar("_Result")


class Terminated(BaseException):
    """Raised in the main thread by SIGTERM; no `Exception`, like KeyboardInterrupt."""


class _State:
    """Signals of this process: `received` is the last one, `pending` its exception until a write ends."""

    process = 0
    writes = 0
    pending: BaseException | None = None
    received: int | None = None


class deferred_interrupts:  # reads as a verb
    """Context manager of a write: the exception for a signal is raised when the block ends.

    A second signal is not deferred.
    """

    def __enter__(self) -> None:
        """Defer signals, which only the main thread receives."""
        self._is_main = threading.current_thread() is threading.main_thread()
        _State.writes += self._is_main

    def __exit__(self, *error: object) -> None:
        """Raise the deferred exception."""
        _State.writes -= self._is_main
        if self._is_main and not _State.writes and _State.pending is not None:
            pending, _State.pending = _State.pending, None
            raise pending


@contextmanager
def handle_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and `Terminated` on SIGTERM until the block ends.

    Signals that the parent process ignores, as `nohup` and background jobs of scripts do, stay ignored.
    """
    _State.process, _State.pending, _State.received = os.getpid(), None, None
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit with one message on Ctrl-C or SIGTERM in the block, which has changed nothing."""
    try:
        with handle_interrupts():
            yield
    except KeyboardInterrupt:
        _exit("interrupted", EXIT_INTERRUPTED)
    except Terminated:
        _exit("terminated", EXIT_TERMINATED)


def _exit(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\nhint:  Run the command again\n")
    sys.exit(code)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.process:  # a fork, such as a worker of a DataLoader
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    _State.received = number
    if _State.writes and _State.pending is None:
        _State.pending = error
        return
    raise error


def wait_for(future: Future[_Result]) -> _Result:
    """Return the result of a future, or raise its error; a signal ends the wait.

    CPython does not see a signal that arrives between its last check and the begin of a wait until the wait
    ends. `Future.result()` without a timeout would miss a Ctrl-C for as long as a server stalls.
    """
    while True:
        try:
            return future.result(CHECK_SECONDS)
        except TimeoutError:
            if future.done():
                return future.result()


def exit_code_of_signal() -> int | None:
    """Return the exit code for the signal that `handle_interrupts` received; None if there was none.

    Some extension modules replace the exception of a signal during their import by another one.
    """
    return None if _State.received is None else 128 + _State.received
