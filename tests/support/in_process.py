"""Command lines in the process of the test, which saves the imports of a new process."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from avdata.cli.console import run_command
from avdata.cli.main import app


def avdata(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `avdata` in this process, with its own output."""
    command = ["avdata", *map(str, words)]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            run_command(app)
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(command, ended.value.code, stdout.getvalue(), stderr.getvalue())
