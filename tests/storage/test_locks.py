"""Folder locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from avdata.errors import AvdataError
from avdata.storage.atomic import DiskError
from avdata.storage.locks import lock_folder

CONFLICT = AvdataError("another run holds the folder", hint="wait for it")

HOLD = """
import sys, time
from pathlib import Path
from avdata.errors import AvdataError
from avdata.storage.locks import lock_folder
with lock_folder(Path(sys.argv[1]), AvdataError("locked")):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_lock_folder_refuses_a_second_process_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(AvdataError, match="another run"), lock_folder(tmp_path, CONFLICT):
            pass
        holder.kill()
        holder.wait()
        with lock_folder(tmp_path, CONFLICT):
            pass


def test_lock_folder_is_not_kept_by_a_forked_process(tmp_path: Path) -> None:
    with lock_folder(tmp_path, CONFLICT):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with lock_folder(tmp_path, CONFLICT):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_lock_folder_reports_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DiskError, match="cannot be written"),
        lock_folder(tmp_path / "file" / "sub", CONFLICT),
    ):
        pass
