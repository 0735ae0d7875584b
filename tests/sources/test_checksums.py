"""Checksums are computed once, and again only after a change."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from avdata.manifest import FileEntry
from avdata.sources.checksums import ChecksumCache, verify_files


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.wav").write_bytes(bytes([number]) * 1000)
    return folder


@pytest.fixture
def facts():
    return [
        FileEntry(
            path=f"{n}.wav", checksum="sha256:" + hashlib.sha256(bytes([n]) * 1000).hexdigest(), bytes=1000
        )
        for n in range(5)
    ]


def test_verify_files_does_not_read_verified_files_again(root, facts):
    assert verify_files(root, facts).hashed == 5
    again = verify_files(root, facts)
    assert (again.hashed, again.good) == (0, tuple(f"{n}.wav" for n in range(5)))


def test_verify_files_reads_all_files_with_rehash(root, facts):
    verify_files(root, facts)
    assert verify_files(root, facts, rehash=True).hashed == 5


def test_verify_files_separates_missing_and_wrong_files(root, facts):
    (root / "0.wav").unlink()
    (root / "1.wav").write_bytes(b"short")
    (root / "2.wav").write_bytes(bytes(1000))
    result = verify_files(root, facts)
    assert (result.missing, result.wrong) == (("0.wav",), ("1.wav", "2.wav"))
    assert result.hashed == 3


@pytest.mark.parametrize("change", ["mtime", "inode", "size"])
def test_checksum_cache_forgets_changed_files(root, facts, change):
    verify_files(root, facts)
    path = root / "3.wav"
    before = path.stat()
    if change == "mtime":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "inode":
        copy = root / "copy"
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        path.write_bytes(b"x" * 999)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ChecksumCache(root).get("3.wav") is None


def test_verify_files_accepts_md5_without_sizes(root):
    facts = [FileEntry(path="1.wav", checksum="md5:" + hashlib.md5(bytes([1]) * 1000).hexdigest())]
    assert verify_files(root, facts).good == ("1.wav",)


def test_checksum_cache_loses_only_an_incomplete_line(root, facts, cache):
    verify_files(root, facts)
    (cache_file,) = (cache / "proofs").iterdir()
    text = cache_file.read_text()
    cache_file.write_text(text[: len(text) - 30])
    assert verify_files(root, facts).hashed == 1
    assert verify_files(root, facts).hashed == 0


def test_checksum_cache_works_for_read_only_folders(root, facts):
    root.chmod(0o555)
    assert verify_files(root, facts).hashed == 5
    assert verify_files(root, facts).hashed == 0
    root.chmod(0o755)
    assert sorted(path.name for path in root.iterdir()) == [f"{n}.wav" for n in range(5)]


def test_verify_files_works_without_a_writable_cache(root, facts, cache, caplog):
    cache.write_text("a file where the folder should be")
    assert len(verify_files(root, facts).good) == 5
    assert "Cannot write the checksum cache" in caplog.text


def test_checksum_cache_is_thread_safe(root):
    stat = (root / "1.wav").stat()
    with ChecksumCache(root) as checksums:
        threads = [
            threading.Thread(
                target=lambda n=n: [checksums.store(f"{n}/{k}", "md5:0", stat) for k in range(50)]
            )
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (root / "1.wav").rename(root / "moved.wav")
    with ChecksumCache(root) as checksums:
        stored = [checksums.get(f"{n}/{k}", file=root / "moved.wav") for n in range(8) for k in range(50)]
    assert stored == ["md5:0"] * 400
