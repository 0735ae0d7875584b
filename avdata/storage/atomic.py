"""Atomic."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from avdata.errors import AvdataError

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskError(AvdataError):
    """A file cannot be written: the disk is full or the folder is not writable."""


class write_errors:  # reads as a verb; a generator doubles the time of a small write
    """Context manager that raises `DiskError` in place of `OSError`.

    Args:
        path: the file or folder to name in the message.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise `DiskError` in place of an `OSError`."""
        if not isinstance(error, OSError):
            return
        if error.errno in _DISK_FULL:
            msg = f"the disk is full: {self._path} could not be written ({error.strerror})"
            hint = (
                "make room, or set AVDATA_CACHE or --output to a larger disk, and repeat the command:"
                " finished files are kept"
            )
        elif error.errno == errno.EFBIG:
            msg = f"{self._path} would grow beyond the allowed file size ({error.strerror})"
            hint = "raise the limit (ulimit -f) or lower shards.samples_per_shard: finished files are kept"
        else:
            msg = f"{self._path} cannot be written ({error.strerror or error})"
            hint = "choose another folder, or make this one writable"
        raise DiskError(msg, hint=hint) from error


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or as before: temporary sibling, sync, rename, sync.

    Raises:
        AvdataError: the disk is full or the place cannot be written.
    """
    with write_errors(path):
        if path.is_dir():  # found before the part is written, which would be left beside it
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        # The process is in the name: a worker that outlives its run must not write into the next one's file.
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                stream.write(data)
                fsync(stream.fileno())
        except OSError:
            # What is half written would fill a full disk for good.
            part.unlink(missing_ok=True)
            raise
        atomic_rename(part, path)


def atomic_rename(part: Path, final: Path) -> None:
    """Give a synced file its final name, and sync the folder so that the name lasts."""
    final.parent.mkdir(parents=True, exist_ok=True)
    part.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        fsync(folder)
    finally:
        os.close(folder)


def fsync(fd: int) -> None:
    """fsync, on file systems that have it."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
