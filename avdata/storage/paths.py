"""The cache folder, and checks of paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import platformdirs

from avdata.errors import UsageError


def check_path_encoding(path: object) -> None:
    """Check that a path can be encoded as UTF-8, which pyarrow and FFmpeg require.

    Raises:
        UsageError: the path is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        msg = f"The path {str(path)!a} is not UTF-8."
        raise UsageError(msg, hint="Rename it. If it looks correct, set PYTHONUTF8=1.") from error


def cache_dir() -> Path:
    """Return the cache folder, which need not exist yet.

    `AVDATA_CACHE` sets it. The default is the operating system's: on Linux `$XDG_CACHE_HOME/avdata`, or
    `~/.cache/avdata` if that variable is not set.
    """
    override = os.environ.get("AVDATA_CACHE")
    if override:
        return Path(override).expanduser()
    return platformdirs.user_cache_path("avdata", appauthor=False)


def source_dir(name: str) -> Path:
    """Return the default download folder of dataset `name`.

    >>> source_dir("cremad") == cache_dir() / "sources" / "cremad"
    True
    """
    return cache_dir() / "sources" / name


def walk_files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder in sorted order, without hidden ones; follow each linked folder once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if real not in seen and name[0] != ".")
        seen.add(real)


def is_safe_relative_path(path: str) -> bool:
    """Whether a path stays below the folder it is relative to, on every operating system.

    >>> is_safe_relative_path("VideoFlash/1001.flv"), is_safe_relative_path("../../etc/passwd")
    (True, False)
    >>> is_safe_relative_path("C:/boot.ini")
    False
    """
    parts = PurePosixPath(path).parts
    plain = not re.search(r"[\\\0\n\t]|^[A-Za-z]:", path) and not path.startswith("/")
    return bool(parts) and ".." not in parts and plain
