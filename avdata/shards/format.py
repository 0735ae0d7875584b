"""On-disk format, version 2: deterministic tar shards and the Parquet files beside them.

A prepared dataset is a folder:

    dataset.json        config, labels, counts, checksums and versions
    index.parquet       one row per sample, sorted by shard, then offset
    quarantine.parquet  one row per excluded clip: key, reason, detail, kept
    README.md           dataset card
    croissant.json      MLCommons Croissant description of the dataset
    SPLIT/NAME-SPLIT-00000-of-00012.tar

A shard is a USTAR archive. Every member has mode 0444, mtime, uid and gid 0, and empty user and group names.
The members of a sample are adjacent, named `KEY.extension`, in alphabetical order of their extensions:

    cls          label index, decimal digits
    flac         waveform of the window, 16 bits, if `audio.flac` is set; the JSON then has `waveform_span`,
                 the samples [first, last) that are no padding
    frames.jpg   the T frames as one horizontal strip, H × T·W        (or)
    frames.npy   uint8 [T, H, W, C]                                   (or)
    frames.png   the same strip, lossless
    json         label name, split, times, offset, provenance; sorted keys
    mel.npy      float16 [T, F, L], log-mel of each step

A dataset of audio has no frames members, and `shape.frames` of its dataset.json is null.

A shard is, byte for byte, what `webdataset.TarWriter(mtime=0, user="", group="", mode=0o444)` writes.

The bytes `offset … offset + nbytes` of an index row's shard are one sample: the headers, data and padding to
512 bytes of its members. A shard ends with zero blocks up to a multiple of 10,240 bytes. Nothing is pickled.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.storage.atomic import atomic_rename, fsync, open_partial, part_path, write_errors

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 2

METADATA_FILES = ("index.parquet", "quarantine.parquet", "croissant.json", "README.md", "dataset.json")
"""Files beside the shards, in the order of writing: a dataset with `dataset.json` is complete."""

EXTENSIONS = ("cls", "flac", "frames.jpg", "frames.npy", "frames.png", "json", "mel.npy")

TAR_BLOCK = 512

IndexRow = dict[str, Any]


def shard_name(dataset: str, split: str, number: int, count: int) -> str:
    """Return the path of a shard relative to the dataset's root.

    >>> shard_name("cremad", "train", 0, 12)
    'train/cremad-train-00000-of-00012.tar'
    """
    return f"{split}/{dataset}-{split}-{number:05d}-of-{count:05d}.tar"


def index_schema() -> pa.Schema:
    """Return the columns of index.parquet."""
    import pyarrow as pa  # noqa: PLC0415

    text, real = pa.string(), pa.float64()
    return pa.schema(
        [
            ("key", text), ("split", text), ("shard", text), ("offset", pa.int64()), ("nbytes", pa.int64()),
            ("label", pa.int32()), ("label_name", text), ("group", text),
            ("window_start", real), ("window_end", real), ("av_offset", real), ("av_peak", real),
            ("duration_audio", real), ("duration_video", real), ("pad_fraction", real),
            ("flags", pa.list_(text)), ("sha256", text),
        ]
    )  # fmt: skip


def quarantine_schema() -> pa.Schema:
    """Return the columns of quarantine.parquet."""
    import pyarrow as pa  # noqa: PLC0415

    return pa.schema(
        [("key", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("kept", pa.string())]
    )


def write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Replace a Parquet file atomically; each table becomes a row group, and only one is in memory.

    Raises:
        DiskError: the file cannot be written.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    part = part_path(path)
    with write_errors(path):
        try:
            with open_partial(part) as stream:
                with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
                    for table in tables:
                        writer.write_table(table)
                stream.flush()
                fsync(stream.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        atomic_rename(part, path)


def parquet_bytes(rows: list[IndexRow], schema: pa.Schema) -> bytes:
    """Encode rows as a Parquet file. Equal rows give equal bytes."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return sink.getvalue()
