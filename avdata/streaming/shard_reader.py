"""Where the stream's shards stand: a folder, mapped into memory, or a URL, read through the shard cache."""

from __future__ import annotations

import hashlib
import json
import mmap
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from avdata.errors import AvdataError, UsageError
from avdata.storage.backends import SCHEMES
from avdata.storage.hashing import hash_file
from avdata.storage.remote import redact_url
from avdata.streaming.shard_cache import CHANGED_HINT, ShardCache

MAX_EVICTIONS = 10  # times that a shard may be lost from a cache too small for all who read


class ShardReader:
    """Opens the shards of one set by their path below its root.

    Attributes:
        root: the folder that holds dataset.json and index.parquet; of a remote set, their copies.
        name: the set as the user called it, but for a password.
    """

    def __init__(self, where: str | Path, cache: ShardCache) -> None:
        self.name, self._where = redact_url(where), str(where)
        self._cache = cache
        self._maps: dict[str, memoryview] = {}
        self._used: set[str] = set()
        self._lock = threading.Lock()
        self._expected: Mapping[str, Mapping[str, Any]] = {}
        scheme, separator, rest = self.name.partition("://")
        if not separator and self.name.startswith("pipe:"):
            scheme, separator = "pipe", ":"
        if separator and scheme not in SCHEMES:
            msg = f"{self.name} cannot be opened: {scheme} is not a place for data"
            raise UsageError(msg, hint=f"give a folder, or a URL of one of: {', '.join(SCHEMES)}")
        self.remote = bool(separator) and scheme != "file"
        self.root = self._copied() if self.remote else Path(rest if separator else where)

    def set_expected(self, info: Mapping[str, Any], split: str) -> None:
        """Take from dataset.json what the index and the shards of a split must be.

        Raises:
            AvdataError: the index is not the one that dataset.json was written with.
        """
        if not _is_index_of(info, self.root / "index.parquet"):
            msg = f"the index of {self.name} is not the one that its dataset.json was written with"
            raise AvdataError(
                msg, hint="open it again; if that does not help, prepare or publish it again, both together"
            )
        self._expected = {shard["path"]: shard for shard in info["splits"][split]["shards"]}

    def read_shard(self, shard: str) -> memoryview:
        """A whole shard, mapped; a remote one is fetched first.

        Raises:
            AvdataError: it is missing, cannot be fetched, or has not the size that dataset.json says.
        """
        self._used.add(shard)
        mapped = self._maps.get(shard)
        if mapped is None:
            mapped = self._mapped(shard)
        return mapped

    def read_sample(self, shard: str, offset: int, nbytes: int, sha256: Callable[[], str]) -> memoryview:
        """The bytes of one sample; of a remote shard that is not here, no more than these are fetched."""
        known = shard in self._maps or not self.remote or self._expected_shard(shard)["sha256"] in self._cache
        if known:
            return self.read_shard(shard)[offset : offset + nbytes]
        expected = sha256()
        data = self._cache.read_range(self._url(shard), offset, nbytes)
        if len(data) > nbytes:
            # The server knows no ranges.
            data = data[offset : offset + nbytes]
        if hashlib.sha256(data).hexdigest() != expected:
            msg = f"bytes {offset} to {offset + nbytes} of {redact_url(self._url(shard))} are not those"
            msg += " of the index"
            raise AvdataError(msg, hint=CHANGED_HINT)
        return memoryview(bytearray(data))

    def _mapped(self, shard: str) -> memoryview:
        hint = f"avdata verify {self.name} lists all that is wrong"
        expected = int(self._expected_shard(shard)["bytes"])
        try:
            with self._file(shard) as stream:
                # Private and writable, since torch warns of memory that is not; nobody writes to it.
                made = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            msg = f"the shard {self.root / shard} cannot be opened ({error})"
            raise AvdataError(msg, hint=hint) from error
        if len(made) != expected:
            msg = f"the shard {self.root / shard} has {len(made):,} bytes; dataset.json says {expected:,}"
            raise AvdataError(msg, hint=hint)
        with self._lock:
            return self._maps.setdefault(shard, memoryview(made))

    def _file(self, shard: str) -> BinaryIO:
        for _ in range(MAX_EVICTIONS if self.remote else 0):
            # Another process may make room with it before it is open.
            with suppress(FileNotFoundError):
                return self._fetched(shard).open("rb")
        return (self.root / shard).open("rb")

    def _expected_shard(self, shard: str) -> Mapping[str, Any]:
        if shard not in self._expected:
            msg = f"the shard {shard} is in the index of {self.name}, but not in its dataset.json"
            raise AvdataError(msg, hint="index.parquet and dataset.json are of different preparations")
        return self._expected[shard]

    def _fetched(self, shard: str) -> Path:
        proof = self._expected_shard(shard)
        # Reading a mapped shard leaves no trace on disk: what is in use must not look the oldest.
        used, self._used = self._used, set()
        for name in used & self._expected.keys():
            self._cache.touch(self._expected[name]["sha256"], int(self._expected[name]["bytes"]))
        path = self._cache.fetch(self._url(shard), proof["sha256"], int(proof["bytes"]))
        with self._lock:
            # A shard that was evicted takes disk space as long as it is mapped.
            gone = [name for name in self._maps if self._expected[name]["sha256"] not in self._cache]
            for name in gone:
                del self._maps[name]
        return path

    def prefetch(self, shard: str) -> None:
        """Bring a remote shard here; what fails is raised when the shard is read."""
        if self.remote and shard not in self._maps:
            self.read_shard(shard)

    def _url(self, shard: str) -> str:
        return f"{self._where.rstrip('/')}/{shard}"

    def _copied(self) -> Path:
        """Fresh copies of dataset.json and index.parquet; shards are known by checksum: none goes stale."""
        folder = self._cache.folder / "sets" / hashlib.sha256(self._where.encode()).hexdigest()[:32]
        for _ in range(2):  # somebody may publish a new set between the two files
            for name in ("dataset.json", "index.parquet"):
                self._cache.copy(self._url(name), folder / name)
            try:
                info = json.loads((folder / "dataset.json").read_bytes())
            except ValueError as error:
                msg = f"{redact_url(self._url('dataset.json'))} is not JSON"
                raise AvdataError(msg, hint="check that the URL is a prepared set's folder") from error
            if _is_index_of(info, folder / "index.parquet"):
                break
        return folder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_used": set(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _is_index_of(info: Any, path: Path) -> bool:
    """Whether an index is the one that dataset.json was written with, as far as that says."""
    promised = info.get("index", {}).get("sha256") if isinstance(info, dict) else None
    return not promised or not path.is_file() or hash_file(path) == promised
