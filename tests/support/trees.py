"""Compare folders byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest_tree(root: Path) -> dict[str, str]:
    """sha256 of every file by path below the root."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
