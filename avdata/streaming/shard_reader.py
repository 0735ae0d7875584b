"""Read shards of a dataset: memory-mapped from a folder, or through the shard cache from a URL."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avdata.errors import AvdataError, UnavailableError, UsageError, error_message, redact_url
from avdata.shards.dataset_files import copy_metadata
from avdata.shards.reader import index_batches
from avdata.storage.backends import SCHEMES
from avdata.storage.hashing import hash_file
from avdata.storage.paths import check_regular_file
from avdata.storage.remote_files import pin_url, read_range
from avdata.streaming.shard_cache import CHANGED_HINT, ShardCache

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

MAX_MAPS = 4_096  # of one dataset; Linux allows a process 65,530

# Errors of a dataset that lacks a file. All others are of the environment, such as too many open files.
DAMAGE_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}

ENVIRONMENT_HINT = "Raise the limit (ulimit -n, memory), or check the permissions and the disk"

SIZE_CHECK_INTERVAL_S = 0.01  # of one shard; a check takes up to a tenth of the time of copying a sample

# With more shards than samples in that time, each sample would need a check, of 5 to 20 µs: limit them to 500
# per second, at most a hundredth of the time, after a burst of 200.
SIZE_CHECK_SPACING_S, SIZE_CHECK_BURST_S = 0.002, 0.4

_HAS_DESCRIPTOR_PATHS = os.path.isdir("/dev/fd")

MAX_EVICTIONS = 10  # fetches of a shard that a cache too small for its readers evicts before it is opened


class ShardReader:
    """Shard reader for local and remote datasets; shards are named by their path in the dataset.

    Args:
        dataset: Folder or URL of the dataset.
        cache: Cache of remote shards.
        verify: Whether to compare the SHA-256 of each shard with dataset.json when this process first maps it
            (default: only shards that were in the cache). A fetched shard is always verified.

    Attributes:
        root: Folder of dataset.json and index.parquet (of a remote dataset: of their copies).
        name: The dataset as the user named it, with credentials redacted.
        remote: Whether shards are fetched through the cache.
        max_maps: Number of shards that are mapped at a time.
    """

    def __init__(self, dataset: str | Path, cache: ShardCache, *, verify: bool | None = None) -> None:
        self.max_maps = MAX_MAPS
        self.name, self._dataset = redact_url(dataset), str(dataset)
        self._cache = cache
        self._maps: OrderedDict[str, memoryview] = OrderedDict()
        self._size_checked: dict[str, float] = {}
        self._checks_until = 0.0  # when the checks so far, each in its spacing, are over
        self._verified: set[str] = set()
        self._used: set[str] = set()
        self._lock, self._verify_lock = threading.Lock(), threading.Lock()
        self._expected: Mapping[str, Mapping[str, Any]] = {}
        self._checked: tuple[object, ...] = ()
        scheme, separator, rest = self.name.partition("://")
        if not separator and self.name.startswith("pipe:"):
            scheme, separator = "pipe", ":"
        if separator and scheme not in SCHEMES:
            msg = f"Unsupported URL scheme '{scheme}' in {self.name}."
            raise UsageError(msg, hint=f"Use a folder or one of: {', '.join(SCHEMES)}")
        self.remote = bool(separator) and scheme != "file"
        if self.remote:
            self._dataset = pin_url(self._dataset)
        self._verify = self.remote if verify is None else verify
        self.root = self._copy_metadata() if self.remote else Path(rest if separator else dataset)

    def set_expected(self, info: Mapping[str, Any], splits: Iterable[str]) -> None:
        """Set the sizes and checksums of the shards of some splits, from dataset.json.

        Raises:
            AvdataError: The index was not written with this dataset.json.
        """
        if not self._is_index_of(info, self.root / "index.parquet"):
            msg = f"Checksum mismatch of index.parquet in {self.name}: dataset.json records another index."
            raise AvdataError(
                msg, hint="Open the dataset again; if the error persists, prepare or publish it again"
            )
        self._expected = {
            shard["path"]: shard for split in splits for shard in info["splits"][split]["shards"]
        }

    def index_batches(
        self, columns: list[str], info: Mapping[str, Any] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the index in batches; see `shards.reader.index_batches`."""
        return index_batches(self.root, columns, info)

    def read_shard(self, shard: str) -> memoryview:
        """Return a memory-mapped shard; a remote one is fetched first.

        A map is used again only while its file keeps its size: reading behind the end of a truncated file
        would kill the process with SIGBUS.

        Raises:
            AvdataError: The shard is missing, cannot be fetched, or differs from dataset.json.
        """
        if self.remote:
            self._used.add(shard)
        mapped = self._maps.get(shard)
        # The order matters only once maps are released soon; keeping it takes several cache misses.
        if mapped is not None and 2 * len(self._maps) > self.max_maps:
            with self._lock, suppress(KeyError):  # another thread may have released it
                self._maps.move_to_end(shard)
        if mapped is None or self._is_truncated(shard, len(mapped)):
            mapped = self._map(shard)
        return mapped

    def _is_truncated(self, shard: str, size: int) -> bool:
        """Return whether the file of a mapped shard became smaller, and forget its map then."""
        now = time.monotonic()
        is_exhausted = self._checks_until > now + SIZE_CHECK_BURST_S
        if is_exhausted or now - self._size_checked.get(shard, 0.0) < SIZE_CHECK_INTERVAL_S:
            return False
        self._checks_until = max(self._checks_until, now) + SIZE_CHECK_SPACING_S
        self._size_checked[shard] = now
        try:
            current = os.stat(self._stored_path(shard)).st_size
        except OSError:
            return False  # a removed file, such as an evicted one, stays readable in its map
        if current >= size:
            return False
        with self._lock:
            self._maps.pop(shard, None)
        return True

    def _stored_path(self, shard: str) -> str:
        if self.remote:
            return str(self._cache.path(self._expected[shard]["sha256"]))
        return os.path.join(self.root, shard)

    def read_sample(self, shard: str, offset: int, nbytes: int, sha256: Callable[[], str]) -> memoryview:
        """Return the bytes of one sample; of a remote shard that is not cached, fetch only these bytes."""
        cached = (
            shard in self._maps or not self.remote or self._expected_shard(shard)["sha256"] in self._cache
        )
        if cached:
            return self.read_shard(shard)[offset : offset + nbytes]
        expected = sha256()
        data = read_range(self._url(shard), offset, nbytes)
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
        if self._verify:
            mapped = self._verified_map(shard, mapped, expected)
        with self._lock:
            mapped = self._maps.setdefault(shard, mapped)
            self._size_checked[shard] = time.monotonic()
            self._maps.move_to_end(shard)
            while len(self._maps) > self.max_maps:
                # Samples that are being copied keep their map until then.
                self._maps.popitem(last=False)
        return mapped

    def _verified_map(self, shard: str, mapped: memoryview, size: int) -> memoryview:
        """Verify the checksum of a shard once; fetch it again if the copy in the cache is damaged."""
        with self._verify_lock:
            sha256 = self._expected_shard(shard)["sha256"]
            if shard in self._verified or hashlib.sha256(mapped).hexdigest() == sha256:
                self._verified.add(shard)
                return mapped
            if self.remote:
                log.warning(
                    "Checksum mismatch of shard %s of %s in the cache; fetching it again", shard, self.name
                )
                self._cache.discard(sha256)
                fetched, _ = self._open(shard, size)
                if fetched is not None and hashlib.sha256(fetched).hexdigest() == sha256:
                    return fetched
        msg = f"Checksum mismatch of shard {self.root / shard} with dataset.json."
        raise AvdataError(msg, hint=f"avdata verify {self.name} lists all damaged samples")

    def _open(self, shard: str, expected: int) -> tuple[memoryview | None, int]:
        """Return the memory map of a shard, or None if its size differs, and its size."""
        for _ in range(MAX_EVICTIONS if self.remote else 0):
            # Another process may evict the shard before it is open.
            with suppress(FileNotFoundError):
                return map_file(self._fetch(shard), expected)
        return map_file(os.path.join(self.root, shard), expected)

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
        if expected["sha256"] not in self._cache:
            self._verified.add(shard)  # by the fetch, of this process or of another
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
        copy_metadata(self._dataset, folder, ("index.parquet",), copy=self._cache.copy)
        return folder

    def _is_index_of(self, info: Any, path: Path) -> bool:
        """Return whether an index matches the checksum in dataset.json, if there is one.

        The index is hashed once, and again if another process replaced it.
        """
        expected = info.get("index", {}).get("sha256") if isinstance(info, dict) else None
        if not expected or not path.is_file():
            return True
        facts = path.stat()
        checked = (expected, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if self._checked == checked:
            return True
        is_equal = hash_file(path) == expected
        self._checked = checked if is_equal else ()
        return is_equal

    def __getstate__(self) -> dict[str, Any]:
        locks = {"_lock": None, "_verify_lock": None}
        return {**self.__dict__, **locks, "_maps": OrderedDict(), "_used": set(), "_verified": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._verify_lock = threading.Lock(), threading.Lock()


def map_file(path: str | Path, expected: int) -> tuple[memoryview | None, int]:
    """Return a memory map of a file, or None if its size differs from the expected one, and its size.

    A `mmap.mmap` object holds a file descriptor as long as it exists; torch's map does not.

    Args:
        path: The file.
        expected: Expected size in bytes.

    Raises:
        OSError: The file cannot be opened or mapped.
    """
    check_regular_file(path)
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(opened).st_size
        if size != expected or not size:
            return None, size
        # Copy-on-write, because torch warns about read-only memory. It is never written to.
        # The path of the descriptor is the same file, also if another process evicts it meanwhile.
        name = f"/dev/fd/{opened}" if _HAS_DESCRIPTOR_PATHS else str(path)
        mapped = torch.from_file(name, shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise _os_error(error, path) from error
    finally:
        os.close(opened)
    return mapped.numpy().data, size


def _os_error(error: RuntimeError, path: str | Path) -> OSError:
    """Return torch's error, which ends with "(errno)", as an `OSError`."""
    number = re.search(r"\((\d+)\)\s*$", str(error).splitlines()[0])
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code), str(path))


def sample_error(error: Exception, key: str, shard: str, dataset: str) -> AvdataError:
    """Return the error for an unreadable sample, of the kind of its cause."""
    reason = f"member {error} is missing" if isinstance(error, KeyError) else error_message(error)
    msg = f"Cannot read sample {key} in {shard}: {reason}"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return UnavailableError(msg, hint="Free some memory, or use a smaller batch size or fewer workers")
    hint = getattr(error, "hint", None) or (
        f"avdata verify {dataset} lists all damaged samples; on_error='skip' skips them"
    )
    kind = UnavailableError if isinstance(error, UnavailableError) else AvdataError
    return kind(msg, hint=hint)
