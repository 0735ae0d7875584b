"""Atomic writes, and the translation of `OSError` on writing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from avdata.errors import AvdataError

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open` with which a symbolic link is an error (where the system has them)."""

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskError(AvdataError):
    """Error on writing a file: the disk is full, or the folder is not writable."""


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
            msg = f"The disk is full: {self._path} cannot be written ({error.strerror})."
            hint = (
                "Free disk space, or set AVDATA_CACHE or --output to a larger disk, and repeat the command."
                " Finished files are kept."
            )
        elif error.errno == errno.ELOOP:
            msg = f"{self._path} cannot be written: it is a symbolic link, which is not followed."
            hint = "Remove the link, or choose another folder."
        elif error.errno == errno.EFBIG:
            msg = f"{self._path} cannot be written: the file would exceed the size limit ({error.strerror})."
            hint = "Raise the limit with `ulimit -f`, or lower shards.samples_per_shard."
        else:
            msg = f"{self._path} cannot be written ({error.strerror or error})."
            hint = "Choose another folder, or make this one writable."
        raise DiskError(msg, hint=hint) from error


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file atomically: write a temporary sibling, sync it, rename it, sync the folder.

    Raises:
        DiskError: the file cannot be written.
    """
    with write_errors(path):
        if path.is_dir():  # checked first: a failed rename would leave the temporary file behind
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        # The name contains the process ID: a worker that outlives its run must not write into the file of
        # the next run.
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_partial(part) as stream:
                stream.write(data)
                fsync(stream.fileno())
        except OSError:
            # The partial file would keep the disk full.
            part.unlink(missing_ok=True)
            raise
        atomic_rename(part, path)


def open_partial(path: Path) -> BinaryIO:
    """Open a new or partial file for writing, never through a symbolic link.

    Raises:
        OSError: the file cannot be created, or is a symbolic link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_FOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def atomic_rename(part: Path, final: Path) -> None:
    """Rename a synced file to its final name, and sync the folder to make the name durable."""
    final.parent.mkdir(parents=True, exist_ok=True)
    part.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        fsync(folder)
    finally:
        os.close(folder)


def fsync(fd: int) -> None:
    """Call `os.fsync`, ignoring file systems without support for it."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
