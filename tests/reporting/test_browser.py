"""Whether the page passes the tests of in_browser.py, in a browser that may hang without harm."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

PATIENCE = 180
"""Seconds that one test of the browser's may take: all of them together take 25."""
ATTEMPTS = 3


def watched(tests: Path, scratch: Path, patience: int) -> tuple[int, str]:
    """How pytest ended, and what it said. Of all it has started nothing is left running."""
    mark = uuid.uuid4().hex
    command = [
        sys.executable, "-m", "pytest", tests, "-q", "-p", "no:cacheprovider", f"--basetemp={scratch}",
        "-o", f"faulthandler_timeout={patience}", "-o", "faulthandler_exit_on_timeout=true",
    ]  # fmt: skip
    # What hangs may hold a pipe open for good.
    with (scratch.parent / f"{scratch.name}.txt").open("w+") as said:
        ended = subprocess.run(
            command, env={**os.environ, "STARTED_BY": mark}, stdout=said, stderr=said, check=False
        ).returncode
        kill_all(mark)
        said.seek(0)
        return ended, said.read()


def kill_all(mark: str) -> None:
    """Kill the processes that inherited a mark in their environment, and see them die."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                process = os.pidfd_open(int(folder.name))
                signal.pidfd_send_signal(process, signal.SIGKILL)
                end = select.poll()
                end.register(process, select.POLLIN)
                end.poll(60_000)
                os.close(process)


@pytest.mark.slow
def test_the_page_in_a_real_browser(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Chromium and its driver went round in circles twice in some twenty runs of the suite, each time for as
    long as they were let; so what hangs, and nothing else, is tried again."""
    base = tmp_path_factory.getbasetemp().parent
    for attempt in range(ATTEMPTS):
        ended, said = watched(
            Path(__file__).with_name("in_browser.py"), base / f"browser-{os.getpid()}-{attempt}", PATIENCE
        )
        if "Timeout (" not in said:
            break
    assert ended == 0, said


HANGING = """
import os, subprocess, sys, threading
def test_that_never_ends():
    left = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    open(os.environ["LEFT"], "w").write(str(left.pid))
    threading.Event().wait()
"""


def test_what_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    monkeypatch.setenv("LEFT", str(tmp_path / "left"))
    ended, said = watched(tmp_path / "test_hanging.py", tmp_path / "scratch", 1)
    assert ended != 0
    assert "Timeout (" in said
    assert "test_that_never_ends" in said
    status = Path("/proc", (tmp_path / "left").read_text(), "stat")
    # Whoever adopted it may have yet to bury it.
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
