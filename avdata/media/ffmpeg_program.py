"""Run the system's `ffmpeg` program on one file, through pipes and with a time limit.

ffmpeg-python builds the command lines. The program runs without a shell, in a process group of its own, may
open no file but its input, and reads nothing from stdin.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from avdata.errors import MediaError, QuarantineReason, UsageError

PROGRAM = "ffmpeg"

INSTALL_ADVICE = "Install ffmpeg 4.2 or newer (apt install ffmpeg, brew install ffmpeg, or https://ffmpeg.org/download.html)"

TIMEOUT_SHARE = 0.9
"""Share of `quality.timeout` after which ffmpeg is killed: before the engine kills the worker, after which
only Linux ends ffmpeg too."""

PR_SET_PDEATHSIG = 1
"""Option of Linux's `prctl`."""

MAX_LINE_BYTES = 4096
"""Bytes of a line of ffmpeg's log to read at once."""

_START_TIMEOUT_S = 30
"""Time limit of calls that decode nothing."""

_REMOVED_VARIABLES = frozenset({"FFREPORT", "AV_LOG_FORCE_COLOR", "AV_LOG_FORCE_256COLOR"})
"""Environment variables with which ffmpeg would write a log file, or color codes."""


def find_ffmpeg() -> str | None:
    """Return the path of the `ffmpeg` program on PATH, or None."""
    return shutil.which(PROGRAM)


def require_ffmpeg() -> str:
    """Return the path of the `ffmpeg` program.

    Raises:
        UsageError: PATH has none, or it does not start.
    """
    program = find_ffmpeg()
    if program is None:
        msg = "video.decoder=ffmpeg requires the ffmpeg program, and PATH has none."
        raise UsageError(msg, hint=f"{INSTALL_ADVICE}, or use --set video.decoder=pyav.")
    if ffmpeg_version(program) is None:
        msg = f"The ffmpeg program does not start: {program}"
        raise UsageError(msg, hint=f"{INSTALL_ADVICE}, or use --set video.decoder=pyav.")
    return program


@cache
def ffmpeg_version(program: str) -> str | None:
    """Return the version that the program prints, such as `7.1.1`; None if it does not start."""
    output = _run_briefly([program, "-version"]).stdout
    first = re.match(r"ffmpeg version (\S+)", output)
    return first[1] if first else None


def require_hwaccel(program: str, hwaccel: str) -> None:
    """Check that ffmpeg can use a hardware decoder of this machine.

    Raises:
        UsageError: ffmpeg was built without it, or the device cannot be opened.
    """
    import ffmpeg  # noqa: PLC0415

    frame = ffmpeg.input("nullsrc=s=16x16:d=0.04", f="lavfi").output("pipe:1", f="null")
    options = ["-nostdin", "-loglevel", "error", "-init_hw_device", hwaccel]
    done = _run_briefly(ffmpeg.compile(frame, cmd=[program, *options]))
    if done.returncode:
        error = re.sub(r"^(\[[^]]*\] )+", "", next(iter(done.stderr.splitlines()), "no message"))
        msg = f"ffmpeg cannot use video.hwaccel={hwaccel} on this machine: {error}"
        hint = "`ffmpeg -hwaccels` lists those of this build; --set video.hwaccel=null decodes on the CPU."
        raise UsageError(msg, hint=hint)


def _run_briefly(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603  # arguments of this file, no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=_environment(), timeout=_START_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _REMOVED_VARIABLES}
    return {**kept, "AV_LOG_FORCE_NOCOLOR": "1"}


def passthrough_option(program: str) -> dict[str, str]:
    """Return the option that keeps every frame and its timestamp.

    ffmpeg 5.1 introduced `-fps_mode`, and ffmpeg 8 removed `-vsync`.
    """
    number = re.match(r"n?(\d+)\.(\d+)", ffmpeg_version(program) or "")
    is_old = number is not None and (int(number[1]), int(number[2])) < (5, 1)
    return {"vsync" if is_old else "fps_mode": "passthrough"}


def input_file(path: Path, format_name: str, **options: Any) -> Any:
    """Return ffmpeg-python's input of one file, as a container of the given format and no other.

    Timestamps are those of the container. Decoding in one thread keeps the log in the frames' order.
    """
    import ffmpeg  # noqa: PLC0415

    return ffmpeg.input(
        f"file:{os.path.abspath(path)}", f=format_name, protocol_whitelist="file", copyts=None, threads=1,
        **options,
    )  # fmt: skip


@contextmanager
def run_ffmpeg(
    path: Path, stream: Any, read_line: Callable[[str], None], deadline: float
) -> Iterator[IO[bytes]]:
    """Run ffmpeg, and yield its stdout. If the context ends early, kill it.

    Args:
        path: input file, for messages.
        stream: ffmpeg-python's output stream.
        read_line: called with each line of the log, in a thread that ends with the context.
        deadline: time of `time.monotonic()` at which ffmpeg is killed.

    Raises:
        MediaError: TIMEOUT.
        UsageError: see `require_ffmpeg`.
    """
    import ffmpeg  # noqa: PLC0415

    seconds = max(deadline - time.monotonic(), 0.0)
    # `-timelimit`, in seconds of CPU time, ends a busy ffmpeg even if this process was killed.
    options = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info", "-debug_ts"]
    options += ["-max_error_rate", "1", "-timelimit", str(int(2 * seconds) + 1)]
    process = subprocess.Popen(  # noqa: S603  # no shell; the path begins with `file:`
        ffmpeg.compile(stream, cmd=[require_ffmpeg(), *options]),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=_environment(), process_group=0, preexec_fn=_end_with_parent(),  # noqa: PLW1509  # calls one function of libc
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    is_late = threading.Event()

    def kill() -> None:
        # The group: a program that a wrapper script started would keep the pipes open.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def kill_late() -> None:
        is_late.set()
        kill()

    timer = threading.Timer(seconds, kill_late)
    log = threading.Thread(target=_read_log, args=(process.stderr, read_line), name="ffmpeg-log")
    timer.start()
    log.start()
    try:
        yield process.stdout
        log.join()
        process.wait()
    finally:
        timer.cancel()
        if process.returncode is None:
            kill()
            process.wait()
        log.join()
        process.stdout.close()
        process.stderr.close()
    if is_late.is_set():
        raise MediaError(QuarantineReason.TIMEOUT, f"{path.name}: ffmpeg did not end in time")


def _end_with_parent() -> Callable[[], object] | None:
    """Return what a new process calls to be killed with this one, as a worker that is late; Linux only."""
    if sys.platform != "linux":
        return None
    # Loaded here, since the new process must not import.
    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_log(stderr: IO[bytes], read_line: Callable[[str], None]) -> None:
    for line in iter(lambda: stderr.readline(MAX_LINE_BYTES), b""):
        read_line(line.decode("utf-8", "replace"))
