"""Checksums of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from avdata.storage.hashing import hash_file


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "sha1"])
@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_hash_file_equals_the_digest_of_the_bytes(tmp_path: Path, algorithm: str, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    assert hash_file(path, algorithm) == hashlib.new(algorithm, bytes(size)).hexdigest()


def test_hash_file_raises_oserror_for_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "missing")
