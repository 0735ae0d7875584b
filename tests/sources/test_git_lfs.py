"""git-LFS pointers, and the file table made from a checkout of them."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avdata.errors import SourceError
from avdata.manifest import FileEntry, read_file_table
from avdata.sources.git_lfs import (
    build_file_table,
    is_pointer,
    list_lfs_files,
    parse_pointer,
    write_file_table,
)

WAV = b"RIFF" + bytes(1000)


def pointer(content, extension=b""):
    digest = hashlib.sha256(content).hexdigest()
    return (
        b"version https://git-lfs.github.com/spec/v1\n"
        + extension
        + f"oid sha256:{digest}\nsize {len(content)}\n".encode()
    )


@given(content=st.binary(max_size=200))
def test_parse_pointer_returns_checksum_and_size(content):
    expected = ("sha256:" + hashlib.sha256(content).hexdigest(), len(content))
    assert parse_pointer(pointer(content)) == expected
    assert parse_pointer(pointer(content, b"ext-0-foo sha256:" + b"0" * 64 + b"\n")) == expected


@given(data=st.binary(max_size=300))
def test_parse_pointer_rejects_media(data):
    assert parse_pointer(b"RIFF" + data) is None
    assert not is_pointer(b"FLV" + data)


@pytest.mark.parametrize(
    "data",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", pointer(WAV)[:100], pointer(WAV) + bytes(2000)],
)
def test_parse_pointer_rejects_incomplete_pointers(data):
    assert parse_pointer(data) is None


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "AudioWAV").mkdir(parents=True)
    (folder / "AudioMP3").mkdir()
    (folder / "AudioWAV" / "b é.wav").write_bytes(pointer(WAV))
    (folder / "AudioWAV" / "a.wav").write_bytes(pointer(WAV * 2))
    (folder / "AudioMP3" / "a.mp3").write_bytes(pointer(WAV * 3))
    (folder / "labels.csv").write_bytes(b"a,b\n")
    (folder / "link").symlink_to("labels.csv")

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    return folder


def test_list_lfs_files_reads_pointers(checkout):
    facts = list_lfs_files(checkout, ["AudioWAV"])
    assert [(one.path, one.bytes) for one in facts] == [("AudioWAV/a.wav", 2008), ("AudioWAV/b é.wav", 1004)]
    assert facts[0].checksum == "sha256:" + hashlib.sha256(WAV * 2).hexdigest()


def test_list_lfs_files_hashes_files_outside_lfs(checkout):
    facts = {one.path: one for one in list_lfs_files(checkout)}
    assert set(facts) == {"AudioMP3/a.mp3", "AudioWAV/a.wav", "AudioWAV/b é.wav", "labels.csv"}
    assert facts["labels.csv"].checksum == "sha256:" + hashlib.sha256(b"a,b\n").hexdigest()


def test_list_lfs_files_reads_the_commit_not_the_working_tree(checkout):
    (checkout / "AudioWAV" / "a.wav").write_bytes(WAV * 2)
    assert list_lfs_files(checkout, ["AudioWAV"])[0].bytes == 2008


def test_list_lfs_files_names_a_missing_folder(checkout):
    with pytest.raises(SourceError, match="VideoFlash"):
        list_lfs_files(checkout, ["VideoFlash"])


def test_list_lfs_files_names_a_folder_without_git(tmp_path, monkeypatch):
    # The temporary folder itself may lie in a checkout.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SourceError, match="Cannot read the git checkout"):
        list_lfs_files(tmp_path)


def test_file_table_is_read_back_as_written(tmp_path):
    facts = [
        FileEntry(path="b.wav", checksum="sha256:" + "0" * 64, bytes=5),
        FileEntry(path="a é.wav", checksum="md5:" + "1" * 32),
    ]
    write_file_table(tmp_path / "t.tsv.gz", facts)
    write_file_table(tmp_path / "u.tsv.gz", facts[::-1])
    assert read_file_table(tmp_path / "t.tsv.gz") == facts[::-1]
    assert (tmp_path / "t.tsv.gz").read_bytes() == (tmp_path / "u.tsv.gz").read_bytes()


def test_build_file_table_lists_a_checkout(checkout, tmp_path):
    build_file_table(checkout, tmp_path / "t.tsv.gz", ["AudioWAV", "AudioMP3"])
    paths = [facts.path for facts in read_file_table(tmp_path / "t.tsv.gz")]
    assert paths == ["AudioMP3/a.mp3", "AudioWAV/a.wav", "AudioWAV/b é.wav"]
