"""Read shards of a dataset: memory-mapped from a folder, or through the shard cache from a URL."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from avdata.errors import AvdataError, UnavailableError, UsageError, did_you_mean, error_message
from avdata.shards.dataset_info import parse_info
from avdata.shards.reader import read_info
from avdata.storage.backends import SCHEMES
from avdata.storage.hashing import hash_file
from avdata.storage.remote import redact_url
from avdata.streaming.shard_cache import CHANGED_HINT, ShardCache

MAX_MAPS = 4_096  # of one dataset; Linux allows a process 65,530

# Errors of a dataset that lacks a file. All others are of the environment, such as too many open files.
DAMAGE_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}

ENVIRONMENT_HINT = "raise the limit (ulimit -n, memory), or check the permissions and the disk"

MAX_EVICTIONS = 10  # fetches of a shard that a cache too small for its readers evicts before it is opened


def open_reader(dataset: str | Path, split: str, cache: ShardCache) -> tuple[ShardReader, dict[str, Any]]:
    """Return the shard reader of a split and the content of dataset.json.

    Raises:
        AvdataError: `dataset` is not a prepared dataset, or is not reachable.
        UsageError: Unknown split, or unsupported URL.
    """
    reader = ShardReader(dataset, cache)
    info = read_info(reader.root)
    if not isinstance(split, str) or split not in info["splits"]:
        msg = f"Unknown split {split!r} in {reader.name}."
        raise UsageError(msg, hint=did_you_mean(str(split), list(info["splits"])))
    reader.set_expected(info, split)
    return reader, info


class ShardReader:
    """Shard reader for local and remote datasets; shards are named by their path in the dataset.

    Attributes:
        root: Folder of dataset.json and index.parquet (of a remote dataset: of their copies).
        name: The dataset as the user named it, with credentials redacted.
        remote: Whether shards are fetched through the cache.
    """

    def __init__(self, dataset: str | Path, cache: ShardCache) -> None:
        self.name, self._dataset = redact_url(dataset), str(dataset)
        self._cache = cache
        self._maps: OrderedDict[str, memoryview] = OrderedDict()
        self._used: set[str] = set()
        self._lock = threading.Lock()
        self._expected: Mapping[str, Mapping[str, Any]] = {}
        scheme, separator, rest = self.name.partition("://")
        if not separator and self.name.startswith("pipe:"):
            scheme, separator = "pipe", ":"
        if separator and scheme not in SCHEMES:
            msg = f"Unsupported URL scheme '{scheme}' in {self.name}."
            raise UsageError(msg, hint=f"use a folder or one of: {', '.join(SCHEMES)}")
        self.remote = bool(separator) and scheme != "file"
        self.root = self._copy_metadata() if self.remote else Path(rest if separator else dataset)

    def set_expected(self, info: Mapping[str, Any], split: str) -> None:
        """Set the sizes and checksums of a split's shards, from dataset.json.

        Raises:
            AvdataError: The index was not written with this dataset.json.
        """
        if not _is_index_of(info, self.root / "index.parquet"):
            msg = f"Checksum mismatch of index.parquet in {self.name}: dataset.json records another index."
            raise AvdataError(
                msg, hint="open the dataset again; if the error persists, prepare or publish it again"
            )
        self._expected = {shard["path"]: shard for shard in info["splits"][split]["shards"]}

    def read_shard(self, shard: str) -> memoryview:
        """Return a memory-mapped shard; a remote one is fetched first.

        Raises:
            AvdataError: The shard is missing, cannot be fetched, or differs in size from dataset.json.
        """
        self._used.add(shard)
        with self._lock:
            mapped = self._maps.get(shard)
            if mapped is not None:
                self._maps.move_to_end(shard)
        if mapped is None:
            mapped = self._map(shard)
        return mapped

    def read_sample(self, shard: str, offset: int, nbytes: int, sha256: Callable[[], str]) -> memoryview:
        """Return the bytes of one sample; of a remote shard that is not cached, fetch only these bytes."""
        cached = (
            shard in self._maps or not self.remote or self._expected_shard(shard)["sha256"] in self._cache
        )
        if cached:
            return self.read_shard(shard)[offset : offset + nbytes]
        expected = sha256()
        data = self._cache.read_range(self._url(shard), offset, nbytes)
        if len(data) > nbytes:
            # The server ignored the range and sent the complete file.
            data = data[offset : offset + nbytes]
        if hashlib.sha256(data).hexdigest() != expected:
            url = redact_url(self._url(shard))
            msg = f"Checksum mismatch of bytes {offset} to {offset + nbytes} in {url}."
            raise AvdataError(msg, hint=CHANGED_HINT)
        return memoryview(bytearray(data))

    def local_path(self, shard: str) -> Path:
        """Return the path of a shard on this machine; a remote one is fetched first.

        Raises:
            AvdataError: The shard cannot be fetched.
        """
        return self._fetch(shard) if self.remote else self.root / shard

    def prefetch(self, shard: str) -> None:
        """Fetch a shard if it is remote; errors are raised again when the shard is read."""
        if self.remote and shard not in self._maps:
            self.read_shard(shard)

    def _map(self, shard: str) -> memoryview:
        hint = f"avdata verify {self.name} lists all damaged shards"
        expected = int(self._expected_shard(shard)["bytes"])
        try:
            mapped, size = self._open(shard, expected)
        except OSError as error:
            msg = f"Cannot open shard {self.root / shard}: {error.strerror or error}"
            if error.errno in DAMAGE_ERRNOS:
                raise AvdataError(msg, hint=hint) from error
            raise UnavailableError(msg, hint=ENVIRONMENT_HINT) from error
        if mapped is None:
            msg = f"Size mismatch of shard {self.root / shard}: {size:,} bytes, expected {expected:,}."
            raise AvdataError(msg, hint=hint)
        with self._lock:
            mapped = self._maps.setdefault(shard, mapped)
            self._maps.move_to_end(shard)
            while len(self._maps) > MAX_MAPS:
                # Samples that are being copied keep their map until then.
                self._maps.popitem(last=False)
        return mapped

    def _open(self, shard: str, expected: int) -> tuple[memoryview | None, int]:
        """Return the memory map of a shard, or None if its size differs, and its size."""
        for _ in range(MAX_EVICTIONS if self.remote else 0):
            # Another process may evict the shard before it is open.
            with suppress(FileNotFoundError):
                return map_file(self._fetch(shard), expected)
        return map_file(self.root / shard, expected)

    def _expected_shard(self, shard: str) -> Mapping[str, Any]:
        if shard not in self._expected:
            msg = f"Unknown shard {shard} in the index of {self.name}: dataset.json does not list it."
            raise AvdataError(msg, hint="index.parquet and dataset.json are from different preparations")
        return self._expected[shard]

    def _fetch(self, shard: str) -> Path:
        expected = self._expected_shard(shard)
        # Reading a mapped shard does not change its file times: mark shards in use, so they are not evicted.
        used, self._used = self._used, set()
        for name in used & self._expected.keys():
            self._cache.touch(self._expected[name]["sha256"], int(self._expected[name]["bytes"]))
        path = self._cache.fetch(self._url(shard), expected["sha256"], int(expected["bytes"]))
        with self._lock:
            # An evicted shard uses disk space as long as it is mapped.
            evicted = [name for name in self._maps if self._expected[name]["sha256"] not in self._cache]
            for name in evicted:
                del self._maps[name]
        return path

    def _url(self, shard: str) -> str:
        return f"{self._dataset.rstrip('/')}/{shard}"

    def _copy_metadata(self) -> Path:
        """Download dataset.json and index.parquet on every opening, so that no copy is stale."""
        folder = self._cache.folder / "sets" / hashlib.sha256(self._dataset.encode()).hexdigest()[:32]
        for _ in range(2):  # a new version may be published between the two files
            for name in ("dataset.json", "index.parquet"):
                self._cache.copy(self._url(name), folder / name)
            info = parse_info((folder / "dataset.json").read_bytes(), redact_url(self._url("dataset.json")))
            if _is_index_of(info, folder / "index.parquet"):
                break
        return folder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict(), "_used": set(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def map_file(path: Path, expected: int) -> tuple[memoryview | None, int]:
    """Return a memory map of a file, or None if its size differs from the expected one, and its size.

    A `mmap.mmap` object holds a file descriptor as long as it exists; torch's map does not.

    Args:
        path: The file.
        expected: Expected size in bytes.

    Raises:
        OSError: The file cannot be opened or mapped.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != expected or not size:
            return None, size
        # Copy-on-write, because torch warns about read-only memory. It is never written to.
        # The path of the descriptor is the same file, also if another process evicts it meanwhile.
        opened = f"/dev/fd/{stream.fileno()}"
        name = opened if os.path.exists(opened) else str(path)
        try:
            mapped = torch.from_file(name, shared=False, size=size, dtype=torch.uint8)
        except RuntimeError as error:
            raise _os_error(error, path) from error
    return mapped.numpy().data, size


def _os_error(error: RuntimeError, path: Path) -> OSError:
    """Return torch's error, which ends with "(errno)", as an `OSError`."""
    number = re.search(r"\((\d+)\)\s*$", str(error).splitlines()[0])
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code), str(path))


def sample_error(error: Exception, key: str, shard: str, dataset: str) -> AvdataError:
    """Return the error for an unreadable sample, of the kind of its cause."""
    reason = f"member {error} is missing" if isinstance(error, KeyError) else error_message(error)
    msg = f"Cannot read sample {key} in {shard}: {reason}"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return UnavailableError(msg, hint="free some memory, or use a smaller batch size or fewer workers")
    hint = getattr(error, "hint", None) or (
        f"avdata verify {dataset} lists all damaged samples; on_error='skip' skips them"
    )
    kind = UnavailableError if isinstance(error, UnavailableError) else AvdataError
    return kind(msg, hint=hint)


def _is_index_of(info: Any, path: Path) -> bool:
    """Return whether an index matches the checksum in dataset.json, if there is one."""
    expected = info.get("index", {}).get("sha256") if isinstance(info, dict) else None
    return not expected or not path.is_file() or hash_file(path) == expected
