"""Checksums computed once, and what makes them be computed again."""

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


def test_what_was_proven_is_not_read_again(root, facts):
    assert verify_files(root, facts).hashed == 5
    again = verify_files(root, facts)
    assert (again.hashed, again.good) == (0, tuple(f"{n}.wav" for n in range(5)))


def test_rehash_reads_all(root, facts):
    verify_files(root, facts)
    assert verify_files(root, facts, rehash=True).hashed == 5


def test_missing_and_wrong_files_are_told_apart(root, facts):
    (root / "0.wav").unlink()
    (root / "1.wav").write_bytes(b"short")
    (root / "2.wav").write_bytes(bytes(1000))
    proven = verify_files(root, facts)
    assert (proven.missing, proven.wrong) == (("0.wav",), ("1.wav", "2.wav"))
    assert proven.hashed == 3


@pytest.mark.parametrize("change", ["mtime", "inode", "size"])
def test_a_file_that_changed_is_read_again(root, facts, change):
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


def test_md5_facts_without_sizes_are_proven_too(root):
    facts = [FileEntry(path="1.wav", checksum="md5:" + hashlib.md5(bytes([1]) * 1000).hexdigest())]
    assert verify_files(root, facts).good == ("1.wav",)


def test_a_torn_line_costs_one_file_and_not_the_next(root, facts, cache):
    verify_files(root, facts)
    (store,) = (cache / "proofs").iterdir()
    text = store.read_text()
    store.write_text(text[: len(text) - 30])
    assert verify_files(root, facts).hashed == 1
    assert verify_files(root, facts).hashed == 0


def test_a_folder_that_cannot_be_written_to_is_proven_once_as_well(root, facts):
    root.chmod(0o555)
    assert verify_files(root, facts).hashed == 5
    assert verify_files(root, facts).hashed == 0
    root.chmod(0o755)
    assert sorted(path.name for path in root.iterdir()) == [f"{n}.wav" for n in range(5)]


def test_a_cache_that_cannot_be_written_to_costs_the_memory_and_not_the_run(root, facts, cache, caplog):
    cache.write_text("a file where the folder should be")
    assert len(verify_files(root, facts).good) == 5
    assert "Cannot write the checksum cache" in caplog.text


def test_many_threads_may_remember_at_once(root):
    stat = (root / "1.wav").stat()
    with ChecksumCache(root) as proofs:
        threads = [
            threading.Thread(target=lambda n=n: [proofs.store(f"{n}/{k}", "md5:0", stat) for k in range(50)])
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ChecksumCache(root)._known) == 400
