"""Sources in object storage (`--source s3://bucket/raw`): survey by listing, and copies of single files.

The planning node lists the files and copies only those that a recipe reads while it lists the clips: lists,
labels and archives. In their place, media are empty files of the right size and date. The files of a clip are
copied by the node that decodes it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from avdata.errors import SourceError, redact_url
from avdata.storage.atomic import open_partial, part_path, remove_stale_parts, write_errors
from avdata.storage.hashing import hash_file
from avdata.storage.paths import is_safe_relative_path
from avdata.storage.remote import local_mirror_dir, open_filesystem, storage_errors
from avdata.storage.remote_files import RemoteFile, list_files
from avdata.storage.threads import map_in_threads

CONNECTIONS = 16

MEDIA_SUFFIXES = frozenset(
    (
        ".3gp .aac .aif .aifc .aiff .amr .asf .au .avi .caf .dv .flac .flv .jpeg .jpg .m2ts .m4a .m4v .mka"
        " .mkv .mov .mp2 .mp3 .mp4 .mpeg .mpg .mxf .nut .oga .ogg .ogv .opus .png .snd .sph .ts .w64 .wav"
        " .webm .webp .wma .wmv"
    ).split()
)
"""Files that are not copied for the survey. Recipes read no media while they list clips."""

_MTIME_TOLERANCE_S = 1e-3  # file systems round


def survey_source(url: str, kind: str = "survey", suffixes: Set[str] = MEDIA_SUFFIXES) -> Path:
    """Return a local folder with the files of a source: lists and archives, and placeholders of media.

    A file is unchanged if its size and modification time are equal.

    Args:
        url: URL of the folder.
        kind: subfolder of the cache; surveys with other placeholders have another.
        suffixes: suffixes of the files that are not copied.

    Raises:
        SourceError: no files at the URL, or a file with an unsafe name.
        AvdataError: the URL cannot be read.
    """
    root = local_mirror_dir(url, kind)
    listing = _list_source(url)
    with write_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        for path in root.rglob("*"):
            if path.is_file() and path.relative_to(root).as_posix() not in listing:
                path.unlink()
        media = {name for name in listing if is_placeholder(name, suffixes)}
        for name in media:
            _write_placeholder(root / name, listing[name])
    _fetch_outdated(url, root, {name: file for name, file in listing.items() if name not in media})
    return root


def is_placeholder(name: str, suffixes: Set[str] = MEDIA_SUFFIXES) -> bool:
    """Return whether the survey of a source has an empty file in place of this one."""
    return os.path.splitext(name)[1].lower() in suffixes


def _write_placeholder(path: Path, file: RemoteFile) -> None:
    if _is_current(path, file.bytes, file.modified):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_partial(path) as stream:
        stream.truncate(file.bytes)
    if file.modified is not None:
        os.utime(path, (file.modified, file.modified))


def holds_remote_tars(url: str) -> bool:
    """Return whether a source in object storage has tars."""
    return any(name.endswith(".tar") for name in _list_source(url))


def _list_source(url: str) -> dict[str, RemoteFile]:
    listing = list_files(url)
    if not listing:
        msg = f"No files at {redact_url(url)}."
        raise SourceError(msg, hint="Use --source with the URL of the folder of the dataset's files.")
    outside = next((name for name in listing if not is_safe_relative_path(name)), None)
    if outside is not None:
        msg = f"Unsafe file name in {redact_url(url)}: {outside!r}."
        raise SourceError(msg, hint="Rename or remove the file.")
    return listing


def _fetch_outdated(url: str, root: Path, listing: Mapping[str, RemoteFile]) -> None:
    outdated = [
        name for name, file in listing.items() if not _is_current(root / name, file.bytes, file.modified)
    ]
    with storage_errors(url):
        files, base = open_filesystem(url.rstrip("/"))

        def fetch(name: str) -> None:
            _fetch(files, f"{base}/{name}", root / name, listing[name].modified)

        list(map_in_threads(fetch, outdated, CONNECTIONS))


def fetch_source_file(
    url: str, name: str, size: int, *, sha256: str | None = None, modified: float | None = None
) -> Path:
    """Return the copy of a source file on this node; download it unless the node has it.

    Args:
        url: URL of the source.
        name: path of the file below it.
        size: size in bytes.
        sha256: checksum of a copy that is used again; None compares only size and date.
        modified: modification time, POSIX time; None if it is unknown.
    """
    path = local_mirror_dir(url, "mirror") / name
    if _is_current(path, size, modified) and (sha256 is None or hash_file(path) == sha256):
        return path
    with storage_errors(url):
        files, base = open_filesystem(url.rstrip("/"))
        _fetch(files, f"{base}/{name}", path, modified)
    return path


def _is_current(path: Path, size: int, changed: float | None) -> bool:
    try:
        local = path.stat()
    except FileNotFoundError:
        return False
    return local.st_size == size and (changed is None or abs(local.st_mtime - changed) < _MTIME_TOLERANCE_S)


def _fetch(files: Any, remote: str, path: Path, changed: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(path.parent, glob.escape(path.name))
    part = part_path(path)
    files.get_file(remote, str(part))
    if changed is not None:
        # Lets the next run detect a replacement of the same size.
        os.utime(part, (changed, changed))
    part.replace(path)
