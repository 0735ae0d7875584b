"""Where avdata keeps what it can always fetch or compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The cache folder: `AVDATA_CACHE`, else `~/.cache/avdata`. It need not exist yet."""
    chosen = os.environ.get("AVDATA_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "avdata"


def source_root(name: str) -> Path:
    """The folder into which the sources of dataset `name` are downloaded by default.

    >>> source_root("cremad") == cache_root() / "sources" / "cremad"
    True
    """
    return cache_root() / "sources" / name
