"""git-LFS pointers: recognizing the text that stands for a file, and listing what a checkout points to.

A pointer is at most a kilobyte of text: a line `version https://git-lfs.github.com/spec/v1`, then `key
value` lines in alphabetical order, among them `oid sha256:HEX` and `size BYTES`
(https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError, SourceError
from avdata.manifest import FileEntry
from avdata.sources.http import HttpClient, TransferError
from avdata.sources.types import FileRequest, ResolvedUrl

_VERSION = b"version https://git-lfs.github.com/spec/v1"

_MAX_BYTES = 1024

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:.+\n)*?"
    rb"oid (sha256:[0-9a-f]{64})\nsize (\d+)\n?(?:.+\n)*"
)


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins with `head` is pointer text.

    >>> is_pointer(b"version https://git-lfs.github.com/spec/v1" + bytes([10]) + b"oid sha256:0")
    True
    """
    return head.startswith(_VERSION)


def parse_pointer(data: bytes) -> tuple[str, int] | None:
    """Checksum and size of the file that a pointer stands for; None when `data` is not a pointer."""
    match = _POINTER.fullmatch(data) if len(data) <= _MAX_BYTES else None
    return (match[1].decode(), int(match[2])) if match else None


def list_lfs_files(checkout: Path, folders: Sequence[str] = (), *, commit: str = "HEAD") -> list[FileEntry]:
    """The files of a git checkout below `folders` (all of it when empty) at a commit, sorted by path.

    Files under git-LFS are listed by their pointers, so that nothing but the git history is needed
    (`GIT_LFS_SKIP_SMUDGE=1 git clone ...`); the others by the checksum of their content.

    Raises:
        SourceError: `checkout` is not a git checkout, or has no such commit or folder.
    """
    tree = _git(checkout, ["ls-tree", "-r", "-z", "--full-tree", commit, "--", *folders])
    entries = [entry.split(b"\t", 1) for entry in tree.split(b"\0") if entry]
    if not entries:
        msg = f"{checkout} has no files at {commit} below {', '.join(folders) or 'its root'}"
        raise SourceError(msg)
    # Mode 160000 is a submodule and 120000 a link: neither is a file of this repository.
    files = {
        path.decode(): meta.split()[2]
        for meta, path in entries
        if not meta.startswith((b"160000", b"120000"))
    }
    blobs = _git(checkout, ["cat-file", "--batch"], b"".join(blob + b"\n" for blob in files.values()))
    facts = [_facts(path, data) for path, data in zip(files, _batch(blobs), strict=True)]
    return sorted(facts, key=lambda fact: fact.path)


def _git(checkout: Path, arguments: Sequence[str], stdin: bytes = b"") -> bytes:
    command = ["git", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)  # noqa: S603  # no shell
    except FileNotFoundError:
        msg = "git is needed to read a checkout, and is not installed"
        raise AvdataError(msg) from None
    if done.returncode:
        msg = f"git cannot read {checkout}: {done.stderr.decode(errors='replace').strip()}"
        raise SourceError(msg, hint="give the folder of a git checkout")
    return done.stdout


def _batch(output: bytes) -> Iterator[bytes]:
    stream = io.BytesIO(output)
    while header := stream.readline():
        size = int(header.split()[2])
        yield stream.read(size)
        stream.read(1)


def _facts(path: str, data: bytes) -> FileEntry:
    checksum, size = parse_pointer(data) or (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    return FileEntry(path=path, checksum=checksum, bytes=size)


def write_file_table(path: Path, files: Sequence[FileEntry]) -> None:
    """Write a manifest's file table, gzipped; equal lists give equal bytes."""
    lines = ["path\tchecksum\tbytes\n"]
    lines += [
        f"{fact.path}\t{fact.checksum}\t{'' if fact.bytes is None else fact.bytes}\n"
        for fact in sorted(files, key=lambda fact: fact.path)
    ]
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def build_file_table(
    checkout: Path, out: Path, folders: Sequence[str] = (), *, commit: str = "HEAD"
) -> list[FileEntry]:
    """Make a manifest's file table anew from a git checkout; its files.

        build_table(Path("CREMA-D"), Path("manifests/cremad.files.tsv.gz"), ["AudioWAV", "VideoFlash"])

    Raises:
        SourceError: `checkout` is not a git checkout, or has no such commit or folder.
    """
    files = list_lfs_files(checkout, folders, commit=commit)
    write_file_table(out, files)
    return files


_LFS_TYPE = "application/vnd.git-lfs+json"

_LFS_BATCH = 100


class LfsClient:
    """One repository's objects: asked for a hundred at a time, ahead of their turn."""

    def __init__(self, net: HttpClient, repository: str, files: Sequence[FileRequest]) -> None:
        self._net = net
        self._endpoint = f"{_repository(repository)}/info/lfs/objects/batch"
        self._groups = [files[start : start + _LFS_BATCH] for start in range(0, len(files), _LFS_BATCH)]
        self._place = {file.path: number for number, file in enumerate(files)}
        self._locks = [threading.Lock() for _ in self._groups]
        self._found: list[dict[str, ResolvedUrl | TransferError] | None] = [None] * len(self._groups)

    def resolve(self, request: FileRequest) -> ResolvedUrl:
        """The object's link; each is given once, so that another attempt asks for a fresh one."""
        if not _oid(request):
            msg = "git-LFS needs the file's sha256 and size, and the manifest does not give them"
            raise TransferError(msg)
        group, place = divmod(self._place[request.path], _LFS_BATCH)
        if place == _LFS_BATCH // 2:
            self._ahead(group + 1)
        with self._locks[group]:
            found = self._resolved(group).pop(request.path, None)
        if found is None:
            found = self._ask([request])[request.path]
        if isinstance(found, TransferError):
            raise found
        return found

    def _ahead(self, group: int) -> None:
        if group < len(self._groups) and self._locks[group].acquire(blocking=False):
            try:
                self._resolved(group)
            finally:
                self._locks[group].release()

    def _resolved(self, group: int) -> dict[str, ResolvedUrl | TransferError]:
        found = self._found[group]
        if found is None:
            found = self._found[group] = self._ask(self._groups[group])
        return found

    def _ask(self, files: Sequence[FileRequest]) -> dict[str, ResolvedUrl | TransferError]:
        objects = [{"oid": _oid(file), "size": file.bytes} for file in files if _oid(file)]
        request = {"operation": "download", "transfers": ["basic"], "hash_algo": "sha256", "objects": objects}
        headers = {"Accept": _LFS_TYPE, "Content-Type": _LFS_TYPE}
        body = json.dumps(request).encode()
        with self._net.open(self._endpoint, headers, method="POST", body=body) as response:
            answer = response.read()
        try:
            links = {entry["oid"]: _link(entry) for entry in json.loads(answer)["objects"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{self._endpoint} does not answer as a git-LFS server does"
            raise TransferError(msg) from error
        absent = TransferError("the git-LFS server does not know the object")
        return {file.path: links.get(_oid(file), absent) for file in files}


def _repository(url: str) -> str:
    # Whatever follows the repository ({path}, a commit) says nothing to a store that goes by checksum.
    base, git, _ = url.partition(".git/")
    return base + ".git" if git else url.rstrip("/")


def _oid(file: FileRequest) -> str:
    algorithm, _, digest = (file.checksum or "").partition(":")
    return digest if algorithm == "sha256" and file.bytes is not None else ""


def _link(entry: Mapping[str, Any]) -> ResolvedUrl | TransferError:
    if "error" in entry:
        code = int(entry["error"].get("code", 0))
        return TransferError(
            f"git-LFS: {entry['error'].get('message', code)}", retryable=code >= 500, status=code
        )
    action = entry["actions"]["download"]
    return ResolvedUrl(action["href"], action.get("header") or {}, bytes=entry.get("size"))
