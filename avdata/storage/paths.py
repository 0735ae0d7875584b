"""Where avdata keeps what it can always fetch or compute again."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import platformdirs

from avdata.errors import UsageError


def check_path_encoding(path: object) -> None:
    """See that a name can be written down: pyarrow and FFmpeg take paths in UTF-8.

    Raises:
        UsageError: it cannot.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        msg = f"the name {str(path)!a} is not UTF-8"
        raise UsageError(msg, hint="rename it; if it looks right to you, set PYTHONUTF8=1") from error


def cache_dir() -> Path:
    """Return the cache folder, which need not exist yet.

    It is `AVDATA_CACHE` if that is set, else the operating system's: `$XDG_CACHE_HOME/avdata` or
    `~/.cache/avdata` on Linux.
    """
    override = os.environ.get("AVDATA_CACHE")
    return (
        Path(override).expanduser() if override else platformdirs.user_cache_path("avdata", appauthor=False)
    )


def source_dir(name: str) -> Path:
    """The folder into which the sources of dataset `name` are downloaded by default.

    >>> source_dir("cremad") == cache_dir() / "sources" / "cremad"
    True
    """
    return cache_dir() / "sources" / name


def is_safe_relative_path(path: str) -> bool:
    """Whether a path stays below the folder it is relative to, on every system.

    >>> is_safe_relative_path("VideoFlash/1001.flv"), is_safe_relative_path("../../etc/passwd")
    (True, False)
    >>> is_safe_relative_path("C:/boot.ini")
    False
    """
    parts = PurePosixPath(path).parts
    plain = not re.search(r"[\\\0\n\t]|^[A-Za-z]:", path) and not path.startswith("/")
    return bool(parts) and ".." not in parts and plain
