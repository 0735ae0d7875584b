"""Checksums of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file, read in blocks.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     name = Path(folder, "empty")
    ...     name.touch()
    ...     hash_file(name, "md5")
    'd41d8cd98f00b204e9800998ecf8427e'

    Args:
        path: file to read.
        algorithm: name of a `hashlib` algorithm.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return digest.hexdigest()
