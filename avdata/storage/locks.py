"""File locks, which the operating system releases when their process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from avdata.errors import AvdataError
from avdata.storage.atomic import write_errors


@contextmanager
def lock_folder(folder: Path, conflict: AvdataError) -> Iterator[None]:
    """Hold `folder/lock` exclusively; create the folder if it is missing.

    A process that was forked while the lock is held does not keep it.

    Args:
        folder: folder of the lock file.
        conflict: error to raise if another process holds the lock.

    Raises:
        DiskError: the lock file cannot be created.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise conflict from error
    try:
        yield
    finally:
        lock.release()
