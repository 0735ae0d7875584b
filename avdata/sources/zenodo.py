"""Zenodo records as sources of a manifest: `zenodo:RECORD/FILE`.

Zenodo's API states the size and the MD5 of each file of a record. `pin_records` copies both into the manifest
before a download, and stores them in `.avdata/zenodo-RECORD.json`. Later runs send no request: they verify
against the stored values, which dataset.json states too.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from pydantic import ValidationError

from avdata.errors import AvdataError, SourceError, UnavailableError
from avdata.manifest import FileEntry, Manifest, Source
from avdata.sources.source_dir import STATE_DIR, is_unpacked
from avdata.sources.types import TransferError
from avdata.storage.atomic import atomic_write
from avdata.storage.retry import retry

logger = logging.getLogger(__name__)

API_URL = "https://zenodo.org/api/records/{record}"

_URL = re.compile(r"zenodo:(?://)?(?P<record>\d+)/(?P<name>[^/]+)")

_MAX_BYTES = 16 << 20

_MAX_ATTEMPTS = 5

RecordFiles = Mapping[str, FileEntry]
"""Files of a record by name: checksum and size."""


def file_url(rest: str) -> str:
    """Return the location of a file's bytes.

    >>> file_url("1188976/Video_Song_Actor_01.zip")
    'https://zenodo.org/api/records/1188976/files/Video_Song_Actor_01.zip/content'

    Args:
        rest: a `zenodo:` URL after its scheme.

    Raises:
        TransferError: the URL is not `zenodo:RECORD/FILE`.
    """
    match = _URL.fullmatch(f"zenodo:{rest}")
    if match is None:
        msg = f"invalid URL zenodo:{rest}: it must be zenodo:RECORD/FILE"
        raise TransferError(msg)
    return f"{API_URL.format(record=match['record'])}/files/{quote(unquote(match['name']))}/content"


def pin_records(manifest: Manifest, root: Path) -> Manifest:
    """Return the manifest with size and checksum of its files on Zenodo, and store them below `root`.

    A value that the manifest states is kept. A record is requested once per source folder.

    Args:
        manifest: manifest of the dataset.
        root: source folder, locked by the caller.

    Raises:
        SourceError: a record or a file of it does not exist.
        UnavailableError: Zenodo does not answer.
        DiskError: the values cannot be stored.
    """
    return _with_pins(manifest, root, _request_record)


def read_pins(manifest: Manifest, root: Path) -> Manifest:
    """Return the manifest with the sizes and checksums that an earlier download stored; send no request."""
    return _with_pins(manifest, root, None)


def _with_pins(manifest: Manifest, root: Path, request: Callable[[str], RecordFiles] | None) -> Manifest:
    records: dict[str, RecordFiles | None] = {}
    sources = []
    for source in manifest.sources:
        match = next((found for url in source.urls if (found := _URL.fullmatch(url))), None)
        if match is None or "{path}" in match["name"] or (source.checksum and source.bytes is not None):
            sources.append(source)
            continue
        record = match["record"]
        if records.get(record) is None:
            is_needed = not (source.unpack and is_unpacked(root, source))
            records[record] = _load_record(record, root, request if is_needed else None)
        sources.append(_pinned(source, record, unquote(match["name"]), records[record]))
    return manifest.model_copy(update={"sources": tuple(sources)})


def _pinned(source: Source, record: str, name: str, files: RecordFiles | None) -> Source:
    if files is None:
        return source
    if name not in files:
        msg = f"Zenodo record {record} has no file {name!r}."
        raise SourceError(msg, hint=f"Its files: {', '.join(sorted(files)[:5])} … Correct the manifest.")
    checksum, size = files[name].checksum, files[name].bytes
    return source.model_copy(
        update={
            "checksum": source.checksum or checksum,
            "bytes": source.bytes if source.bytes is not None else size,
        }
    )


def _load_record(record: str, root: Path, request: Callable[[str], RecordFiles] | None) -> RecordFiles | None:
    """Return the stored files of a record, else those of `request`; None without both."""
    path = root / STATE_DIR / f"zenodo-{record}.json"
    try:
        return parse_record(path.read_bytes(), str(path))
    except FileNotFoundError:
        pass
    except (OSError, SourceError) as error:
        logger.warning("Cannot read %s, requesting the record again: %s", path, error)
    if request is None:
        return None
    files = request(record)
    stored = [
        {"key": name, "size": entry.bytes, "checksum": entry.checksum}
        for name, entry in sorted(files.items())
    ]
    atomic_write(path, json.dumps({"id": int(record), "files": stored}, indent=1).encode() + b"\n")
    return files


def parse_record(data: bytes, where: str) -> dict[str, FileEntry]:
    """Return the files of a record from the JSON of Zenodo's API.

    >>> text = b'{"files": [{"key": "a.zip", "size": 3, "checksum": "md5:900150983cd24fb0d6963f7d28e17f72"}]}'
    >>> parse_record(text, "record 1")["a.zip"].bytes
    3

    Args:
        data: the response, or the stored file.
        where: its origin, for messages.

    Raises:
        SourceError: it lists no files, or a file without size and checksum.
    """
    try:
        listed = json.loads(data)["files"]
        entries = [
            FileEntry(path=file["key"], checksum=file["checksum"], bytes=file["size"]) for file in listed
        ]
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError) as error:
        msg = f"No list of files with size and checksum in {where}."
        hint = "The record may be restricted. Download its files in a browser and use --source."
        raise SourceError(msg, hint=hint) from error
    return {entry.path: entry for entry in entries}


def _request_record(record: str) -> RecordFiles:
    # Not at the top of the file: importing requests takes 0.1 s.
    from avdata.sources.http import HttpClient  # noqa: PLC0415

    client, url = HttpClient(1), API_URL.format(record=record)

    def ask() -> bytes:
        with client.open(url, {"Accept": "application/json"}) as response:
            return bytes(response.read(_MAX_BYTES))

    def should_retry(error: Exception, attempt: int) -> bool:
        return isinstance(error, TransferError) and error.retryable and attempt < _MAX_ATTEMPTS

    def note(error: Exception, delay: float) -> None:
        logger.warning("Zenodo record %s: %s; trying again in %.1f s", record, error, delay)

    try:
        data = retry(ask, should_retry=should_retry, initial_delay_s=0.5, on_retry=note)
    except TransferError as error:
        raise _record_error(record, error) from error
    finally:
        client.close()
    return parse_record(data, url)


def _record_error(record: str, error: TransferError) -> AvdataError:
    if error.status in (403, 404, 410):
        msg = f"Zenodo record {record} cannot be read: {error}."
        return SourceError(msg, hint=f"See https://zenodo.org/records/{record}, and use --source.")
    msg = f"Zenodo does not answer the request for record {record}: {error}."
    return UnavailableError(msg, hint=error.hint or "Repeat the command later.")
