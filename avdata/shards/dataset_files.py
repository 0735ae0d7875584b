"""Files of a prepared dataset in a folder or behind a URL, for commands that read a dataset where it lies.

    files = open_dataset_files("s3://bucket/set")
    files.read("train/cremad-train-00000-of-00012.tar", offset=0, nbytes=512)

Metadata files are small and copied into the cache; of shards, only the requested bytes are read.
`avdata.streaming` reads shards through its own cache instead.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from avdata.errors import AvdataError, redact_url
from avdata.shards.dataset_info import parse_info, shard_depth
from avdata.shards.reader import read_info
from avdata.storage.hashing import hash_file
from avdata.storage.paths import cache_dir, check_regular_file
from avdata.storage.remote import is_url

READ_AHEAD_BYTES = 4 << 20
"""Bytes that a remote dataset reads at once where samples are read in the order of their shard."""


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """Size in bytes and modification time (POSIX time; None if unknown) of a stored shard."""

    bytes: int
    modified: float | None


class DatasetFiles(Protocol):
    """Files of a prepared dataset. Instances are pickled into workers."""

    @property
    def name(self) -> str:
        """Folder or URL, as the user named it and without credentials."""

    @property
    def root(self) -> Path:
        """Folder of the metadata files, or of their copies."""

    @property
    def info(self) -> dict[str, Any]:
        """Content of dataset.json."""

    def read(self, shard: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return bytes of a shard, all of them by default; fewer if the shard ends before.

        Raises:
            FileNotFoundError: the shard is missing.
            OSError: the shard of a folder cannot be read.
            UnavailableError: the storage cannot be reached.
        """

    def shard_facts(self) -> dict[str, ShardFacts] | None:
        """Return the facts of the stored shards by path; None if the storage cannot list files."""


def open_dataset_files(dataset: str | Path | DatasetFiles, *metadata: str) -> DatasetFiles:
    """Return the files of a prepared dataset.

    Args:
        dataset: folder or URL; files that are already open are returned.
        metadata: metadata files besides dataset.json that are read from `root`.

    Raises:
        AvdataError: the URL is not a prepared dataset, or cannot be read. A folder is checked on reading.
    """
    if isinstance(dataset, LocalDataset | RemoteDataset):
        return dataset
    location = str(dataset).removeprefix("file://")
    if not is_url(location):
        return LocalDataset(Path(location))
    return _open_remote(location, metadata)


@dataclass(frozen=True)
class LocalDataset:
    """Files of a dataset in a folder; see `DatasetFiles`."""

    root: Path

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without `info`, which lists every shard."""
        return LocalDataset, (self.root,)

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.root)

    @cached_property
    def info(self) -> dict[str, Any]:
        """Content of dataset.json."""
        return read_info(self.root)

    def read(self, shard: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return bytes of a shard."""
        check_regular_file(self.root / shard)
        with (self.root / shard).open("rb") as stream:
            stream.seek(offset)
            if nbytes is None:
                return stream.read()
            # A read allocates the requested size first.
            return stream.read(min(nbytes, os.fstat(stream.fileno()).st_size))

    def shard_facts(self) -> dict[str, ShardFacts]:
        """Return the facts of the stored shards by path."""
        pattern = "*/" * shard_depth(self.info) + "*.tar"
        found = {path.relative_to(self.root).as_posix(): path for path in self.root.glob(pattern)}
        facts = {name: path.stat() for name, path in sorted(found.items()) if path.is_file()}
        return {name: ShardFacts(fact.st_size, fact.st_mtime) for name, fact in facts.items()}


@dataclass
class RemoteDataset:
    """Files of a dataset behind a URL; see `DatasetFiles`.

    Attributes:
        url: URL; of a Hugging Face repository, at a fixed commit.
        name: URL as the user named it and without credentials.
        root: folder of the copies of the metadata files.
    """

    url: str
    name: str
    root: Path
    _ahead: tuple[str, int, bytes] = field(default=("", 0, b""), repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without `info`, which lists every shard."""
        return RemoteDataset, (self.url, self.name, self.root)

    @cached_property
    def info(self) -> dict[str, Any]:
        """Content of dataset.json."""
        return parse_info((self.root / "dataset.json").read_bytes(), f"{self.name}/dataset.json")

    def read(self, shard: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return bytes of a shard; read ahead if they follow the bytes of the last call."""
        from avdata.storage.remote_files import MissingFileError, file_size, read_chunks  # noqa: PLC0415

        url = f"{self.url}/{shard}"
        try:
            if nbytes is None:
                size = file_size(url)
                return b"".join(read_chunks(url, size))[offset:]
            return self._read_range(url, shard, offset, nbytes)
        except MissingFileError as error:
            raise FileNotFoundError(error.message) from error

    def _read_range(self, url: str, shard: str, offset: int, nbytes: int) -> bytes:
        from avdata.storage.remote_files import read_range  # noqa: PLC0415

        name, start, data = self._ahead
        end = start + len(data)
        size = self._sizes.get(shard, offset)
        if name == shard and start <= offset and min(offset + nbytes, size) <= end:
            return data[offset - start : offset - start + nbytes]
        is_next = name == shard and offset <= end
        count = min(max(nbytes, READ_AHEAD_BYTES) if is_next else nbytes, max(size - offset, 0))
        if count == 0:
            return b""
        data = read_range(url, offset, count)
        if len(data) > count:
            # The server ignored the range and sent the complete file.
            data = data[offset : offset + count]
        self._ahead = (shard, offset, data)
        return data[:nbytes]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        shards = (shard for split in self.info["splits"].values() for shard in split["shards"])
        return {shard["path"]: shard["bytes"] for shard in shards}

    def shard_facts(self) -> dict[str, ShardFacts] | None:
        """Return the facts of the stored shards by path; None for servers without listings."""
        from avdata.storage.backends import find_backend  # noqa: PLC0415
        from avdata.storage.remote_files import list_files  # noqa: PLC0415

        if not find_backend(self.url).has_folders:
            return None
        depth = shard_depth(self.info)
        files = {
            name: file
            for name, file in list_files(self.url).items()
            if name.endswith(".tar") and name.count("/") == depth
        }
        return {name: ShardFacts(file.bytes, file.modified) for name, file in sorted(files.items())}


def _open_remote(url: str, metadata: Sequence[str]) -> RemoteDataset:
    from avdata.storage.remote_files import MissingFileError, pin_url  # noqa: PLC0415

    pinned = pin_url(url).rstrip("/")
    folder = cache_dir() / "stream" / "sets" / hashlib.sha256(pinned.encode()).hexdigest()[:32]
    try:
        copy_metadata(pinned, folder, metadata)
    except MissingFileError as error:
        hint = error.hint if "bucket" in (error.hint or "") else "Pass the URL that contains dataset.json."
        msg = f"{redact_url(url)} is not a prepared dataset: {error.message}"
        raise AvdataError(msg, hint=hint) from error
    return RemoteDataset(pinned, redact_url(url).rstrip("/"), folder)


def _copy(url: str, path: Path) -> None:
    from avdata.storage.atomic import atomic_write  # noqa: PLC0415
    from avdata.storage.remote_files import read_file  # noqa: PLC0415

    atomic_write(path, read_file(url))


def copy_metadata(
    url: str, folder: Path, names: Sequence[str], *, copy: Callable[[str, Path], None] = _copy
) -> None:
    """Copy dataset.json and other metadata files of a remote dataset, except an index that is current.

    Args:
        url: URL of the dataset.
        folder: folder of the copies.
        names: files besides dataset.json.
        copy: downloads a file to a path, atomically.

    Raises:
        AvdataError: dataset.json or a table is missing or cannot be stored, or dataset.json is invalid.
    """
    for _ in range(2):  # a new version may be published between the files
        copy(f"{url.rstrip('/')}/dataset.json", folder / "dataset.json")
        info = parse_info((folder / "dataset.json").read_bytes(), redact_url(f"{url}/dataset.json"))
        for name in names:
            if name != "index.parquet" or not _is_current_index(folder, info):
                _copy_one(f"{url.rstrip('/')}/{name}", folder / name, copy)
        if "index.parquet" not in names or not info.get("index") or _is_current_index(folder, info):
            break


def _copy_one(url: str, path: Path, copy: Callable[[str, Path], None]) -> None:
    from avdata.storage.remote_files import MissingFileError  # noqa: PLC0415

    try:
        copy(url, path)
    except MissingFileError:
        if path.suffix == ".parquet":
            raise
        path.unlink(missing_ok=True)  # of an earlier version


def _is_current_index(folder: Path, info: Mapping[str, Any]) -> bool:
    """Return whether the copy of the index is the one of dataset.json."""
    expected, path = (info.get("index") or {}).get("sha256"), folder / "index.parquet"
    return expected is not None and path.is_file() and hash_file(path) == expected
