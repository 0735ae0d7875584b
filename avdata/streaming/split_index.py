"""Rows of the index that a stream reads.

Only what every sample needs is kept, about 35 bytes and the key. Other columns are read again when a filter,
weights or a page needs them. The index is read in batches, so its decompressed columns are never in memory
at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from avdata.errors import UsageError
from avdata.shards.format import index_schema
from avdata.streaming.batch import PRESENCE_FLAGS
from avdata.streaming.collate import SampleShape
from avdata.streaming.filter import parse_filter
from avdata.streaming.splits import SplitPart

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ["key", "split", "shard", "offset", "nbytes", "label", "flags"]  # always read

MODALITIES = ("audio", "video")

Condition = str | Callable[[dict[str, Any]], bool]

Weights = str | Sequence[float] | np.ndarray


class IndexReader(Protocol):
    """Reader of the index of a dataset, or of all its parts."""

    name: str

    def index_batches(
        self, columns: list[str], info: Mapping[str, Any] | None = None
    ) -> Iterable[pa.RecordBatch]:
        """Return the rows of the index in batches, checked; see `shards.reader.index_batches`."""


class SplitIndex:
    """Samples that a dataset streams, numbered in the order of the index.

    Attributes:
        row: Number of each sample's row in index.parquet.
        label: int32 [samples].
        offset: Byte of each sample in its shard.
        nbytes: Size of each sample.
        absent: Whether audio is silent and frames are black, bool [samples, 2].
        shards: Paths of the shards.
        shard_of: For each sample, the number of its shard in `shards`.
        shard_sizes: Number of samples of each shard.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], keys: pa.ChunkedArray, shards: list[str]) -> None:
        # The shards are numbered in the order of their samples.
        shard = arrays["shard"]
        first = np.full(len(shards), len(shard), _smallest(len(shard)))
        first[shard[::-1]] = np.arange(len(shard) - 1, -1, -1, dtype=first.dtype)
        order = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(shard))]
        number = np.zeros(len(shards), np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        self.shards = [shards[index] for index in order.tolist()]
        is_in_order = np.array_equal(order, np.arange(len(shards)))
        self.shard_of = shard if is_in_order else number[shard]
        self.shard_sizes = tuple(np.bincount(self.shard_of, minlength=len(self.shards)).tolist())
        self.row, self.label = arrays["row"], arrays["label"]
        self.offset, self.nbytes, self.absent = arrays["offset"], arrays["nbytes"], arrays["absent"]
        self._keys = keys

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def keys(self) -> list[str]:
        """The keys of all samples."""
        return list(self._keys.to_pylist())

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each key."""
        return {key: number for number, key in enumerate(self.keys)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the row numbers, which identifies the selected samples."""
        return hashlib.sha256(self.row.astype(np.int64).tobytes()).hexdigest()

    def key(self, number: int) -> str:
        """Return the key of one sample."""
        return str(self._keys[number].as_py())

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """Return the keys of samples."""
        # `take` would copy all chunks for each batch.
        return [str(self._keys[number].as_py()) for number in numbers.tolist()]

    def repeated_key(self) -> str | None:
        """Return a key that several samples have, or None."""
        import pyarrow.compute as pc  # noqa: PLC0415

        if pc.count_distinct(self._keys).as_py() == len(self):
            return None
        counted = pc.value_counts(self._keys)
        return str(counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"].as_py())

    def take(self, numbers: np.ndarray) -> SplitIndex:
        """Return the index of some samples."""
        arrays = {"row": self.row, "label": self.label, "offset": self.offset, "nbytes": self.nbytes}
        arrays |= {"absent": self.absent, "shard": self.shard_of}
        taken = {name: array[numbers] for name, array in arrays.items()}
        return SplitIndex(taken, self._keys.take(numbers), self.shards)

    def column(self, name: str, reader: IndexReader) -> pa.ChunkedArray:
        """Return the values of another column of the index."""
        import pyarrow as pa  # noqa: PLC0415

        batches = list(reader.index_batches([name]))
        table = pa.Table.from_batches(batches, pa.schema([index_schema().field(name)]))
        return table[name].take(self.row)

    def facts(self, labels: Sequence[str], reader: IndexReader) -> dict[str, Any]:
        """Return the number of samples of each label and of groups, as dataset.json has them for a split."""
        counts = np.bincount(self.label, minlength=len(labels)).tolist()
        groups = len(self.column("group", reader).unique())
        return {"labels": dict(zip(labels, counts, strict=True)), "groups": groups}

    def numbers_where(self, condition: Condition, reader: IndexReader) -> np.ndarray:
        """Return the numbers of the samples that meet a condition.

        Args:
            condition: Text, see `parse_filter`; or a function from a row, as a dict, to a bool.
            reader: Reader of the index, which has more columns.
        """
        import pyarrow as pa  # noqa: PLC0415

        schema = index_schema()
        names = [name for name in schema.names if not isinstance(condition, str) or name in condition]
        expression = parse_filter(condition, schema) if isinstance(condition, str) else None
        is_own = np.zeros(int(self.row.max(initial=-1)) + 1, bool)
        is_own[self.row] = True
        is_met = np.zeros_like(is_own)
        start = 0
        for batch in reader.index_batches(names or ["key"]):
            rows = np.flatnonzero(is_own[start : start + len(batch)])
            selected = pa.Table.from_batches([batch]).take(rows)
            if not isinstance(condition, str):
                met = np.flatnonzero([bool(condition(row)) for row in selected.to_pylist()])
            else:
                numbered = selected.append_column("row", [np.arange(len(rows))])
                met = numbered.filter(expression)["row"].to_numpy()
            is_met[start + rows[met]] = True
            start += len(batch)
        return np.flatnonzero(is_met[self.row])


def read_split_index(
    reader: IndexReader, parts: Sequence[SplitPart], condition: Condition | None, info: Mapping[str, Any]
) -> SplitIndex:
    """Return the samples of some splits that meet a condition, checked against dataset.json (`info`)."""
    import pyarrow as pa  # noqa: PLC0415

    names = list(dict.fromkeys(part.name for part in parts))
    shards: dict[str, int] = {}
    filled = {name: _Columns(info["splits"][name]["samples"]) for name in names}
    keys: dict[str, list[pa.Array]] = {name: [] for name in names}
    start = 0
    for batch in reader.index_batches(COLUMNS, info):
        for name, own, arrays in _pieces(batch, names, shards, start):
            filled[name].append(arrays)
            keys[name].append(own)
        start += len(batch)
    splits = {name: filled.pop(name).arrays() for name in names}
    columns, chunks = [], []
    for part in parts:
        own_keys = pa.chunked_array(keys[part.name], pa.string())
        rows = part.rows(len(own_keys))
        columns.append({field: array[rows.start : rows.stop] for field, array in splits[part.name].items()})
        chunks += own_keys.slice(rows.start, len(rows)).chunks
    samples = SplitIndex(_joined(columns), pa.chunked_array(chunks, pa.string()), list(shards))
    return samples if condition is None else samples.take(samples.numbers_where(condition, reader))


def _pieces(
    batch: pa.RecordBatch, names: Sequence[str], shards: dict[str, int], start: int
) -> Iterator[tuple[str, pa.Array, dict[str, np.ndarray]]]:
    """Yield split, keys and columns of the rows of each split in a batch; number new shards."""
    import pyarrow.compute as pc  # noqa: PLC0415

    encoded = batch["shard"].dictionary_encode()
    codes = [shards.setdefault(shard, len(shards)) for shard in encoded.dictionary.to_pylist()]
    arrays = {
        "row": np.arange(start, start + len(batch), dtype=_smallest(start + len(batch))),
        "label": batch["label"].to_numpy(),
        "offset": batch["offset"].to_numpy(),
        "nbytes": batch["nbytes"].to_numpy(),
        "shard": np.array(codes, np.int32)[encoded.indices.to_numpy()],
        "absent": _absent(batch["flags"]),
    }
    arrays["nbytes"] = arrays["nbytes"].astype(_smallest(int(arrays["nbytes"].max(initial=0))))
    for name in names:
        rows = np.flatnonzero(pc.equal(batch["split"], name).to_numpy(zero_copy_only=False))
        if len(rows):
            yield name, batch["key"].take(rows), {field: array[rows] for field, array in arrays.items()}


def _smallest(number: int) -> type[np.signedinteger[Any]]:
    return np.int32 if number < 2**31 else np.int64


class _Columns:
    """Arrays of a split, filled in place: arrays that are joined would be in memory twice.

    Args:
        capacity: expected number of rows. The index may have others if it is damaged.
    """

    def __init__(self, capacity: int) -> None:
        self._arrays = {name: np.empty((capacity, *shape), dtype) for name, (shape, dtype) in _DTYPES.items()}
        self._count = 0

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Append rows; make room if there are more than expected, or larger numbers."""
        end = self._count + len(arrays["row"])
        for name, values in arrays.items():
            own = self._arrays[name]
            if values.dtype.itemsize > own.dtype.itemsize:
                own = own.astype(values.dtype)
            if end > len(own):
                own = np.resize(own, (2 * end, *own.shape[1:]))
            own[self._count : end] = values
            self._arrays[name] = own
        self._count = end

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the rows."""
        return {name: array[: self._count] for name, array in self._arrays.items()}


_DTYPES: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    "row": ((), np.int32), "label": ((), np.int32), "offset": ((), np.int64), "nbytes": ((), np.int32),
    "shard": ((), np.int32), "absent": ((len(PRESENCE_FLAGS),), np.bool_),
}  # fmt: skip


def _joined(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in _DTYPES}


def _absent(column: pa.Array) -> np.ndarray:
    """Return whether audio and frames are absent according to the flags, bool [samples, 2]."""
    import pyarrow.compute as pc  # noqa: PLC0415

    absent = np.zeros((len(column), len(PRESENCE_FLAGS)), bool)
    flags, rows = pc.list_flatten(column), pc.list_parent_indices(column)
    for modality, flag in enumerate(PRESENCE_FLAGS):
        absent[rows.filter(pc.equal(flags, str(flag))).to_numpy(), modality] = True
    return absent


def read_shape(
    reader: IndexReader,
    info: Mapping[str, Any],
    *,
    waveform: bool,
    modalities: Sequence[str] | None = None,
) -> SampleShape:
    """Return the shapes of a dataset's samples, from dataset.json.

    The length of the waveform is that of the longest window in the index, over all splits.

    Args:
        reader: Reader of the dataset.
        info: Content of dataset.json.
        waveform: Whether waveforms are read.
        modalities: Which of `MODALITIES` are read (default: all).

    Raises:
        UsageError: Invalid modalities, or the dataset stores no frames or waveforms, and they are requested.
    """
    read = _check_modalities(reader.name, info, modalities, waveform=waveform)
    shape = info["shape"]
    mel = tuple(shape["mel"])
    frames = None if shape["frames"] is None or "video" not in read else tuple(shape["frames"])
    if not waveform:
        return SampleShape(mel, frames, has_mel="audio" in read)
    audio = info["config"].get("audio", {})
    if not audio.get("flac"):
        msg = f"Dataset {reader.name} stores no waveforms."
        raise UsageError(msg, hint="Prepare it again with --set audio.flac=true")
    seconds = max(
        float((batch["window_end"].to_numpy() - batch["window_start"].to_numpy()).max(initial=0))
        for batch in reader.index_batches(["window_start", "window_end"])
    )
    length = round(seconds * audio["sample_rate"])
    return SampleShape(mel, frames, (length,), audio["sample_rate"])


def _check_modalities(
    name: str, info: Mapping[str, Any], modalities: Sequence[str] | None, *, waveform: bool
) -> Sequence[str]:
    if modalities is None:
        return MODALITIES
    is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
    if not is_list or not modalities or not set(modalities) <= set(MODALITIES):
        msg = f"Invalid modalities={modalities!r}: must list 'audio', 'video' or both."
        raise UsageError(msg, hint='For example modalities=("audio",)')
    if "video" in modalities and info["shape"]["frames"] is None:
        msg = f"Dataset {name} has no video."
        raise UsageError(msg, hint='Open it with modalities=("audio",)')
    if waveform and "audio" not in modalities:
        msg = f"Conflict between waveform=True and modalities={modalities!r}: waveforms are audio."
        raise UsageError(msg, hint='Add "audio" to the modalities')
    return modalities


def read_presence(index: SplitIndex, shape: SampleShape) -> np.ndarray:
    """Return whether audio and frames are read and present according to the flags, bool [samples, 2]."""
    present: np.ndarray = ~index.absent & (shape.has_mel, shape.frames is not None)
    return present
