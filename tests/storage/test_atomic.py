"""Atomic writes and write errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from avdata.storage import atomic
from avdata.storage.atomic import DiskError, atomic_write, write_errors


def test_atomic_write_replaces_a_file_and_creates_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for data in (b"one", b"two"):
        atomic_write(path, data)
        assert path.read_bytes() == data
    assert [child.name for child in path.parent.iterdir()] == ["file"]


def test_atomic_write_replaces_no_pipe_or_device(tmp_path: Path) -> None:
    """As `avdata report out -o /dev/null` of root did."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(DiskError, match=r"cannot be written \(not a regular file\)"):
            atomic_write(tmp_path / name, b"data")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["null", "pipe"]


def test_atomic_write_keeps_the_old_file_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    atomic_write(tmp_path / "file", b"old")
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(DiskError, match="The disk is full") as caught:
        atomic_write(tmp_path / "file", b"new")
    assert "AVDATA_CACHE" in str(caught.value)
    assert {child.name: child.read_bytes() for child in tmp_path.iterdir()} == {"file": b"old"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EDQUOT, "The disk quota is used up"),
        (errno.EFBIG, "size limit"),
        (errno.EACCES, r"cannot be written \(cause\)"),
    ],
)
def test_write_errors_names_the_path_and_the_cause(code: int, message: str) -> None:
    with pytest.raises(DiskError, match=message) as caught, write_errors("out/file"):
        raise OSError(code, "cause")
    assert "out/file" in caught.value.message
    assert caught.value.hint


def test_write_errors_passes_other_errors_on() -> None:
    with pytest.raises(ValueError, match="other"), write_errors("out/file"):
        raise ValueError("other")
