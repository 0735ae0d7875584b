"""The cache folder, and checks of paths."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import platformdirs

from avdata.errors import AvdataError, UsageError, redact_url


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

    Raises:
        UsageError: `AVDATA_CACHE` is a URL, or the folder is below the home folder, and the user has none, as
            in a container with an arbitrary user ID.
    """
    override = os.environ.get("AVDATA_CACHE")
    if override and "://" in override:
        msg = f"AVDATA_CACHE is a URL: {override}."
        raise UsageError(msg, hint="Set AVDATA_CACHE to a folder of this machine.")
    try:
        # platformdirs raises only in its newer versions; older ones return a path that begins with `~`.
        folder = Path(override) if override else platformdirs.user_cache_path("avdata", appauthor=False)
        return folder.expanduser()
    except RuntimeError as error:
        msg = "No cache folder: it would be below the home folder, and this user has none."
        raise UsageError(msg, hint="Set AVDATA_CACHE to a writable folder.") from error


def source_dir(name: str) -> Path:
    """Return the default download folder of dataset `name`.

    >>> source_dir("cremad") == cache_dir() / "sources" / "cremad"
    True
    """
    return cache_dir() / "sources" / name


def local_path(location: str | Path) -> Path:
    """Return the path of a file or folder to write on this machine.

    >>> local_path("out/set")
    PosixPath('out/set')

    Raises:
        UsageError: the location is a URL.
    """
    # A Path merges the slashes of a URL.
    url = re.match(r"([a-z][a-z0-9+.-]+):/+(.*)", str(location), re.DOTALL)
    if url:
        msg = f"Cannot write to a URL here: {redact_url(f'{url[1]}://{url[2]}')}."
        raise UsageError(msg, hint="Use a path on this machine")
    return Path(location)


def check_regular_file(path: str | Path) -> None:
    """Check that a path, if it exists, is a file or a folder: reading a pipe or device may never end.

    Raises:
        OSError: the path is a pipe, a socket or a device, or cannot be examined.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.ENXIO, "not a regular file", str(path))


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


def check_no_symlinks(root: Path, names: Iterable[str]) -> None:
    """Check that no path below a folder is a symbolic link or below one.

    A write, rename or removal through a link would change files outside the folder. The folder itself may be
    a link.

    Args:
        root: folder that is written.
        names: paths relative to it, which need not exist.

    Raises:
        AvdataError: a path, or a folder between it and `root`, is a symbolic link.
    """
    checked: set[PurePosixPath] = set()
    for name in names:
        path = PurePosixPath(name)
        for part in (*path.parents[-2::-1], path):
            if part not in checked and (root / part).is_symlink():
                msg = f"{root / part} is a symbolic link, which is not followed."
                raise AvdataError(msg, hint="Remove the link, or choose another folder.")
            checked.add(part)
