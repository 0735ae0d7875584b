"""git-LFS: parse pointers and list the files of a checkout.

A pointer is at most 1 KiB of text: a line `version https://git-lfs.github.com/spec/v1`, then `key value`
lines in alphabetical order, among them `oid sha256:HEX` and `size BYTES`
(https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from avdata.errors import AvdataError, SourceError
from avdata.manifest import FileEntry

_VERSION = b"version https://git-lfs.github.com/spec/v1"

_MAX_BYTES = 1024

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:.+\n)*?"
    rb"oid (sha256:[0-9a-f]{64})\nsize (\d+)\n?(?:.+\n)*"
)


def is_pointer(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a git-LFS pointer.

    >>> is_pointer(b"version https://git-lfs.github.com/spec/v1" + bytes([10]) + b"oid sha256:0")
    True
    """
    return head.startswith(_VERSION)


def parse_pointer(data: bytes) -> tuple[str, int] | None:
    """Return the checksum and size in a pointer; None if `data` is not a pointer."""
    match = _POINTER.fullmatch(data) if len(data) <= _MAX_BYTES else None
    return (match[1].decode(), int(match[2])) if match else None


def list_lfs_files(checkout: Path, folders: Sequence[str] = (), *, commit: str = "HEAD") -> list[FileEntry]:
    """Return the files of a git checkout at a commit, sorted by path.

    Files under git-LFS are listed by their pointers, so that a clone without LFS objects is enough
    (`GIT_LFS_SKIP_SMUDGE=1 git clone ...`). Other files are listed by the SHA-256 of their content.

    Args:
        checkout: folder of the checkout.
        folders: folders to list (default: all).
        commit: commit to list.

    Raises:
        SourceError: `checkout` is not a git checkout, or has no such commit or folder.
        AvdataError: git is not installed.
    """
    tree = _git(checkout, ["ls-tree", "-r", "-z", "--full-tree", commit, "--", *folders])
    entries = [entry.split(b"\t", 1) for entry in tree.split(b"\0") if entry]
    if not entries:
        msg = f"No files in {checkout} at {commit} below {', '.join(folders) or 'its root'}."
        raise SourceError(msg)
    # Skip submodules (mode 160000) and links (120000).
    files = {
        path.decode(): meta.split()[2]
        for meta, path in entries
        if not meta.startswith((b"160000", b"120000"))
    }
    blobs = _git(checkout, ["cat-file", "--batch"], b"".join(blob + b"\n" for blob in files.values()))
    listed = [_file_entry(path, data) for path, data in zip(files, _batch(blobs), strict=True)]
    return sorted(listed, key=lambda entry: entry.path)


def _git(checkout: Path, arguments: Sequence[str], stdin: bytes = b"") -> bytes:
    command = ["git", "-C", str(checkout), *arguments]
    try:
        process = subprocess.run(command, input=stdin, capture_output=True, check=False)  # noqa: S603  # no shell
    except FileNotFoundError:
        msg = "git is not installed."
        raise AvdataError(msg, hint="Install git.") from None
    if process.returncode:
        msg = f"Cannot read the git checkout {checkout}: {process.stderr.decode(errors='replace').strip()}"
        raise SourceError(msg, hint="Use the folder of a git checkout.")
    return process.stdout


def _batch(output: bytes) -> Iterator[bytes]:
    stream = io.BytesIO(output)
    while header := stream.readline():
        size = int(header.split()[2])
        yield stream.read(size)
        stream.read(1)


def _file_entry(path: str, data: bytes) -> FileEntry:
    checksum, size = parse_pointer(data) or (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    return FileEntry(path=path, checksum=checksum, bytes=size)


def write_file_table(path: Path, files: Sequence[FileEntry]) -> None:
    """Write a manifest's file table, gzipped; equal lists result in equal bytes."""
    lines = ["path\tchecksum\tbytes\n"]
    lines += [
        f"{entry.path}\t{entry.checksum}\t{'' if entry.bytes is None else entry.bytes}\n"
        for entry in sorted(files, key=lambda entry: entry.path)
    ]
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def build_file_table(
    checkout: Path, out: Path, folders: Sequence[str] = (), *, commit: str = "HEAD"
) -> list[FileEntry]:
    """Write a manifest's file table from a git checkout and return its files.

        build_file_table(Path("CREMA-D"), Path("manifests/cremad.files.tsv.gz"), ["AudioWAV", "VideoFlash"])

    Raises:
        SourceError: `checkout` is not a git checkout, or has no such commit or folder.
    """
    files = list_lfs_files(checkout, folders, commit=commit)
    write_file_table(out, files)
    return files
