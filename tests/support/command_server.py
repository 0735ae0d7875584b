"""Runs commands in forks of one process that has imported torch, so that each starts without these seconds.

A command has its own process, folder, environment and output; only the imported modules are shared.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ("lightning.fabric", "matplotlib.figure", "snnergy.training.trainer", "torchvision.io")


class CommandServer:
    """Client of the process; a context manager."""

    def __enter__(self) -> CommandServer:
        """Start the process, which needs some seconds for its imports."""
        command = [sys.executable, "-P", __file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._process.communicate()

    def run(
        self, command: Sequence[str], cwd: Path, environment: Mapping[str, str] = {}, timeout_s: int = 600
    ) -> None:
        """Run `avdata`, `snnergy` or `python -c`, and fail with the output unless the exit code is 0.

        Args:
            command: program and arguments.
            cwd: current folder.
            environment: variables besides those of this process.
            timeout_s: time after which the command is killed, s.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryFile("w+") as output:
            request = {
                "command": list(command), "cwd": str(cwd), "timeout_s": timeout_s,
                "environment": {**os.environ, **environment},
                "output": f"/proc/{os.getpid()}/fd/{output.fileno()}",
            }  # fmt: skip
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            output.seek(0)
            assert code == 0, (command, output.read())


def serve() -> None:
    """Run the commands of standard input, a line each, and write their exit codes to standard output."""
    for name in PRELOADED:
        importlib.import_module(name)
    # It ends a fork without the destructors of C++, which would wait for threads that the fork does not have.
    forks = multiprocessing.get_context("fork")
    for line in sys.stdin:
        command = forks.Process(target=run_command, kwargs=json.loads(line))
        command.start()
        command.join()
        sys.stdout.write(f"{command.exitcode}\n")
        sys.stdout.flush()


def run_command(
    command: list[str], cwd: str, timeout_s: int, environment: dict[str, str], output: str
) -> None:
    """Run a command in this process, which ends with it."""
    signal.alarm(timeout_s)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    if command[:2] == ["python", "-c"]:
        sys.argv = command[1:2] + command[3:]
        sys.path.insert(0, "")
        exec(command[2], {"__name__": "__main__"})
        sys.exit()
    sys.argv = command
    sys.exit(importlib.import_module(f"{command[0]}.__main__").main())


if __name__ == "__main__":
    serve()
