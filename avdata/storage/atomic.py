"""Atomic writes, and the translation of `OSError` on writing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Self

from avdata.errors import AvdataError
from avdata.interrupts import deferred_interrupts
from avdata.storage.paths import check_regular_file

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open` with which a symbolic link is an error (where the system has them)."""

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskError(AvdataError):
    """Error on writing a file: the disk is full, or the folder is not writable."""


class write_errors:  # reads as a verb; a generator doubles the time of a small write
    """Context manager that raises `DiskError` in place of `OSError`.

    Args:
        path: the file or folder to name in the message.
        needed: bytes to write, for the message; None if unknown. It may be changed in the block.
    """

    def __init__(self, path: Path | str, needed: int | None = None) -> None:
        self._path = path
        self.needed = needed

    def __enter__(self) -> Self:
        """Return the context manager."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise `DiskError` in place of an `OSError`."""
        if not isinstance(error, OSError):
            return
        if full := full_disk_error(error, self._path, self.needed):
            raise full from error
        if error.errno == errno.ELOOP:
            msg = f"{self._path} cannot be written: it is a symbolic link, which is not followed."
            hint = "Remove the link, or choose another folder."
        else:
            msg = f"{self._path} cannot be written ({error.strerror or error})."
            hint = "Choose another folder, or make this one writable."
        raise DiskError(msg, hint=hint) from error


def full_disk_error(error: OSError, path: Path | str, needed: int | None = None) -> DiskError | None:
    """Return the error to raise if a disk, a quota or the limit of file sizes is exhausted; else None.

    Args:
        error: error of a library or of the system.
        path: file or folder that was written.
        needed: bytes to write; None if unknown.
    """
    if error.errno == errno.EFBIG:
        size = "" if needed is None else f"{needed:,} bytes needed, "
        msg = f"{path} cannot be written: the file would exceed the size limit ({size}{_file_size_limit()})."
        return DiskError(msg, hint="Raise the limit with `ulimit -f`, or lower shards.samples_per_shard.")
    if error.errno not in _DISK_FULL:
        return None
    return _disk_full(path, needed, is_quota=error.errno == errno.EDQUOT)


def _disk_full(path: Path | str, needed: int | None, *, is_quota: bool = False) -> DiskError:
    what = "The disk quota is used up" if is_quota else "The disk is full"
    size = "" if needed is None else f"{needed:,} bytes needed, "
    msg = f"{what}: {path} cannot be written ({size}{free_bytes(Path(path)):,} bytes free)."
    hint = (
        "Free disk space, or set AVDATA_CACHE or --output to a larger disk, and repeat the command."
        " Finished files are kept."
    )
    return DiskError(msg, hint=hint)


def check_space(path: Path, needed: int) -> None:
    """Check that a disk has room for files whose sizes are known, before the first of them is written.

    Raises:
        DiskError: fewer than `needed` bytes are free on the disk of `path`.
    """
    if needed > free_bytes(path):
        raise _disk_full(path, needed)


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of a file or folder, which need not exist."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _file_size_limit() -> str:
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows, where a process has no such limit
        return "of the file system"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return "of the file system" if limit == resource.RLIM_INFINITY else f"{limit:,} allowed"


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file atomically: write a temporary sibling, sync it, rename it, sync the folder.

    Ctrl-C and SIGTERM take effect afterwards.

    Raises:
        DiskError: the file cannot be written.
    """
    with deferred_interrupts(), write_errors(path, len(data)):
        if path.is_dir():  # checked first: a failed rename would leave the temporary file behind
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        check_regular_file(path)  # root may replace /dev/null by a file
        part = part_path(path)
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


def part_path(path: Path) -> Path:
    """Return the path where this process writes a file until it is complete.

    It contains the process ID: a worker that outlives its run must not write into the file of the next run.
    """
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def remove_stale_parts(folder: Path, name: str = "*") -> None:
    """Remove the partial files that killed processes of this machine left in a folder.

    Args:
        folder: the folder, which may be missing.
        name: name of the complete file, or a pattern (default: all files).
    """
    for part in folder.glob(f"{name}.*.part"):
        process = part.name.split(".")[-2]
        # In a container, a new run may have the ID of the killed one.
        if process.isdigit() and (int(process) == os.getpid() or not is_alive(int(process))):
            part.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # the process belongs to another user
        return True
    return True


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
