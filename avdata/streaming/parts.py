"""Read the shards of several prepared datasets, the parts of one, as those of one dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.errors import AvdataError, UsageError, redact_url
from avdata.shards.dataset_info import is_part_name
from avdata.shards.parts import merge_infos, missing_parts
from avdata.shards.reader import read_info
from avdata.storage.remote import is_url, open_filesystem, storage_errors
from avdata.storage.threads import map_in_threads
from avdata.streaming.shard_cache import ShardCache
from avdata.streaming.shard_reader import MAX_MAPS, ShardReader
from avdata.streaming.split_index import SplitIndex
from avdata.streaming.splits import SplitPart, parse_split

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

_CONNECTIONS = 8  # parts whose metadata are read at the same time

_PATTERN_CHARACTERS = "*?["


def find_parts(dataset: str | Path | Sequence[str | Path]) -> list[str | Path] | None:
    """Return the datasets of a list or of a pattern such as `s3://bucket/parts/*`; None for one dataset.

    Raises:
        UsageError: the list is empty, or no dataset matches the pattern.
        AvdataError: the storage cannot be listed.
    """
    if not isinstance(dataset, str | Path):
        parts = list(dataset)
        if not parts:
            msg = "Cannot open 0 datasets."
            raise UsageError(msg)
        return parts
    pattern = str(dataset)
    if not any(character in pattern for character in _PATTERN_CHARACTERS) or Path(pattern).is_dir():
        return None
    found = _list_stored(pattern) if is_url(pattern) else _list_local(pattern)
    if not found:
        msg = f"No prepared dataset matches {redact_url(pattern)}."
        raise UsageError(msg, hint="Check the pattern: it names folders with a dataset.json")
    return found


def _list_stored(pattern: str) -> list[str | Path]:
    with storage_errors(pattern):
        files, path = open_filesystem(f"{pattern.rstrip('/')}/dataset.json")
        files.invalidate_cache()
        names = sorted(name.removesuffix("dataset.json") for name in files.glob(path))
    return [files.unstrip_protocol(name.rstrip("/")) for name in names]


def _list_local(pattern: str) -> list[str | Path]:
    path = Path(pattern)
    names = path.relative_to(path.anchor).as_posix()
    # In the order of the shards' paths, as `avdata merge` sorts them.
    found = sorted(f"{info.parent}/" for info in Path(path.anchor).glob(f"{names}/dataset.json"))
    return [Path(name) for name in found]


class PartsReader:
    """Reader of the shards of several datasets, by the name of the part and the path in it.

    Args:
        parts: Folders or URLs of the datasets.
        cache: Cache of remote shards.
        verify: Whether to verify the checksum of each shard; see `ShardReader`.

    Attributes:
        info: Content of dataset.json of the union.
        name: The datasets, with credentials redacted.
        root: Folder of the first part's metadata.
        remote: Whether any shard is fetched through the cache.
        is_divided: Whether the parts are those of `select.part`, which have no sample in common.
    """

    def __init__(self, parts: Sequence[str | Path], cache: ShardCache, *, verify: bool | None = None) -> None:
        def open_part(part: str | Path) -> tuple[ShardReader, dict[str, Any]]:
            reader = ShardReader(part, cache, verify=verify)
            return reader, read_info(reader.root)

        opened = list(map_in_threads(open_part, parts, _CONNECTIONS))
        names = _part_names(parts)
        self._readers = {name: reader for name, (reader, _) in zip(names, opened, strict=True)}
        self._infos = {name: info for name, (_, info) in zip(names, opened, strict=True)}
        self.info = merge_infos(self._infos)
        first, first_info = opened[0]
        self.name = f"{first.name} and {len(parts) - 1} more" if len(parts) > 1 else first.name
        # `merge_infos` refuses numbered and other parts together.
        self.is_divided = first_info["config"]["select"]["part"] is not None
        self.root, self.remote = first.root, any(reader.remote for reader in self._readers.values())
        for reader in self._readers.values():
            reader.max_maps = max(MAX_MAPS // len(parts), 1)
        if missing := missing_parts(self._infos.values()):
            _log.warning("Parts are missing: %s", ", ".join(missing[:10]) + " …" * (len(missing) > 10))

    def set_expected(self, info: Mapping[str, Any], splits: Iterable[str]) -> None:
        """Set the sizes and checksums of the shards of some splits; see `ShardReader.set_expected`."""
        splits = list(splits)
        for name, reader in self._readers.items():
            own = self._infos[name]
            reader.set_expected(own, [split for split in splits if split in own["splits"]])

    def index_batches(
        self, columns: list[str], info: Mapping[str, Any] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the indexes of all parts in batches; see `shards.reader.index_batches`."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.compute as pc  # noqa: PLC0415

        for name, reader in self._readers.items():
            for batch in reader.index_batches(columns, info and self._infos[name]):
                if "shard" not in columns:
                    yield batch
                    continue
                shards = pc.binary_join_element_wise(pa.scalar(f"{name}/"), batch["shard"], "")
                yield batch.set_column(batch.schema.get_field_index("shard"), "shard", shards)

    def _locate(self, shard: str) -> tuple[ShardReader, str]:
        name, _, path = shard.partition("/")
        return self._readers[name], path

    def read_shard(self, shard: str) -> memoryview:
        """Return a memory-mapped shard; see `ShardReader.read_shard`."""
        reader, path = self._locate(shard)
        return reader.read_shard(path)

    def read_sample(self, shard: str, offset: int, nbytes: int, sha256: Callable[[], str]) -> memoryview:
        """Return the bytes of one sample; see `ShardReader.read_sample`."""
        reader, path = self._locate(shard)
        return reader.read_sample(path, offset, nbytes, sha256)

    def local_path(self, shard: str) -> Path:
        """Return the path of a shard on this machine; see `ShardReader.local_path`."""
        reader, path = self._locate(shard)
        return reader.local_path(path)

    def prefetch(self, shard: str) -> None:
        """Fetch a shard if it is remote; see `ShardReader.prefetch`."""
        reader, path = self._locate(shard)
        reader.prefetch(path)


def _part_names(parts: Sequence[str | Path]) -> list[str]:
    """Return a distinct name of each part: the last one of its path, or its number."""
    names = [str(part).rstrip("/").rpartition("/")[2] for part in parts]
    if len(set(names)) == len(names) and all(map(is_part_name, names)):
        return names
    return [f"{number:06d}" for number in range(len(parts))]


Shards = ShardReader | PartsReader
"""Reader of the shards of one dataset, or of several."""


def open_reader(
    dataset: str | Path | Sequence[str | Path], split: str, cache: ShardCache, *, verify: bool | None = None
) -> tuple[Shards, dict[str, Any], list[SplitPart]]:
    """Return the shard reader of some splits, the content of dataset.json, and the parts of the splits.

    Args:
        dataset: Folder or URL of the dataset, or several; see `find_parts`.
        split: Names of splits; see `parse_split`.
        cache: Cache of remote shards.
        verify: Whether to verify the checksum of each shard; see `ShardReader`.

    Raises:
        AvdataError: `dataset` is not a prepared dataset, or is not reachable.
        UsageError: Unknown or invalid split, or unsupported URL.
    """
    parts = find_parts(dataset)
    reader: Shards
    if parts is None:
        assert isinstance(dataset, str | Path)
        reader = ShardReader(dataset, cache, verify=verify)
        info = read_info(reader.root)
    else:
        reader = PartsReader(parts, cache, verify=verify)
        info = reader.info
    lengths = {
        name: sum(int(shard["samples"]) for shard in content["shards"])
        for name, content in info["splits"].items()
    }
    selected = parse_split(split, lengths, reader.name)
    reader.set_expected(info, [part.name for part in selected])
    return reader, info, selected


def check_distinct(reader: Shards, index: SplitIndex) -> None:
    """Check that no sample is in several datasets, which `select.part` guarantees.

    Raises:
        AvdataError: a key occurs twice.
    """
    if isinstance(reader, PartsReader) and not reader.is_divided and (key := index.repeated_key()):
        msg = f"Sample {key} is in several datasets of {reader.name}."
        raise AvdataError(msg, hint="Open datasets of different clips, or combine them with avdata.mix")
