"""The on-disk format, version 1: deterministic tars, their index, and reading one sample back.

A prepared set is a folder:

    dataset.json        what the set is: config, labels, counts, checksums, versions
    index.parquet       one row a sample, sorted by shard, then offset
    quarantine.parquet  one row a clip left out: key, reason, detail, kept
    README.md           the dataset card
    croissant.json      the same for machines, in MLCommons' Croissant
    SPLIT/NAME-SPLIT-00000-of-00012.tar

A tar is USTAR; every member has mode 0444 and mtime, uid and gid 0, and no user or group name. A sample's
members stand together, named `KEY.extension`, always in the order of `EXTENSIONS`:

    mel.npy      float16 [T, F, L]                  log-mel of each step
    frames.jpg   the T frames as one horizontal strip, H × T·W    (or)
    frames.png   the same strip, exact                            (or)
    frames.npy   uint8 [T, H, W, C]
    cls          the label's index, decimal digits
    json         label name, split, times, offset, provenance; sorted keys
    flac         the window's waveform, 16 bits, when the config keeps it

An index row's bytes `offset … offset + nbytes` of its shard are one sample: its members' headers, data and
padding to 512. A shard ends with zero blocks up to a multiple of 10,240 bytes. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from avdata.errors import AvdataError, check_spelling, explained_table

if TYPE_CHECKING:
    import pyarrow as pa

    from avdata.config import Config
    from avdata.features import Features

FORMAT = 1
EXTENSIONS = ("mel.npy", "frames.jpg", "frames.png", "frames.npy", "cls", "json", "flac")
BLOCK = 512
RECORD = 10_240

IndexRow = dict[str, Any]


def shard_name(dataset: str, split: str, number: int, count: int) -> str:
    """The path of a shard below the set's root.

    >>> shard_name("cremad", "train", 0, 12)
    'train/cremad-train-00000-of-00012.tar'
    """
    return f"{split}/{dataset}-{split}-{number:05d}-of-{count:05d}.tar"


def encode_members(
    features: Features, label: int, facts: Mapping[str, Any], config: Config
) -> dict[str, bytes]:
    """A sample's members as bytes, by extension, in the order of the format.

    Args:
        features: mel float16 [T, F, L], frames uint8 [T, H, W, C], waveform float32 [n] or None.
        label: the label's index.
        facts: what goes into the JSON.
        config: decides how frames are stored and whether the waveform is kept.
    """
    members = {"mel.npy": _npy(features.mel)}
    if config.video.storage == "jpeg":
        members["frames.jpg"] = _strip(features.frames, "JPEG", quality=config.video.quality)
    elif config.video.storage == "png":
        members["frames.png"] = _strip(features.frames, "PNG")
    else:
        members["frames.npy"] = _npy(features.frames)
    members["cls"] = str(label).encode()
    members["json"] = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    if config.audio.flac:
        assert features.waveform is not None
        members["flac"] = _flac(features.waveform, config.audio.sample_rate)
    return members


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _strip(frames: np.ndarray, kind: str, **options: int) -> bytes:
    # Not torchvision's encoder: torchvision takes seconds to import, in every worker.
    from PIL import Image  # noqa: PLC0415

    # [T, H, W, C] -> [H, T·W, C]
    steps, height, width, channels = frames.shape
    strip = np.ascontiguousarray(frames.transpose(1, 0, 2, 3).reshape(height, steps * width, channels))
    buffer = io.BytesIO()
    image = Image.fromarray(strip[..., 0] if channels == 1 else strip)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _flac(waveform: np.ndarray, rate: int) -> bytes:
    import soundfile  # noqa: PLC0415

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class ShardWriter:
    """Writes samples into one deterministic tar and keeps their index rows.

    >>> import io
    >>> writer = ShardWriter(io.BytesIO(), "train/x-train-00000-of-00001.tar")
    >>> writer.add("a", {"cls": b"0"}, {})["nbytes"]
    1024
    """

    def __init__(self, stream: BinaryIO, shard: str) -> None:
        self.shard = shard
        self.rows: list[IndexRow] = []
        self._stream = stream
        self._offset = 0

    def add(self, key: str, members: Mapping[str, bytes], row: IndexRow) -> IndexRow:
        """Append one sample; returns its index row, `row` completed with where it is."""
        offset = self._offset
        digest = hashlib.sha256()
        for extension, data in members.items():
            for part in (tar_header(f"{key}.{extension}", len(data)), data, bytes(-len(data) % BLOCK)):
                self._write(part)
                digest.update(part)
        full = {
            **row,
            "key": key,
            "shard": self.shard,
            "offset": offset,
            "nbytes": self._offset - offset,
            "sha256": digest.hexdigest(),
        }
        self.rows.append(full)
        return full

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._offset += len(data)

    def close(self) -> None:
        """Write the end of the archive; the stream stays open."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._offset % RECORD))


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a member as the format prescribes it."""
    encoded = name.encode()
    if len(encoded) > 100 or size >= 8**11:
        return _plain_header(name, size)
    # A field of the template is filled in instead: tarfile takes twenty times as long.
    header = bytearray(_plain_header("", 0))
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


@lru_cache(maxsize=16)
def _plain_header(name: str, size: int) -> bytes:
    import tarfile  # noqa: PLC0415

    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


def read_members(buffer: bytes | memoryview, key: str | None = None) -> dict[str, memoryview]:
    """A sample's members by extension, without copying, from its bytes in the shard.

    Args:
        buffer: the bytes that the index gives the sample.
        key: the sample's key; by default that of its first member.

    Raises:
        AvdataError: the bytes are not whole USTAR members of that key.
    """
    view = memoryview(buffer)
    members: dict[str, memoryview] = {}
    at, end = 0, len(view)
    while at + BLOCK <= end and view[at]:
        header = bytes(view[at : at + BLOCK])
        # The index proves where members are, their names whose; the sum over each header would cost a tenth
        # of the stream's time and is `verify`'s to check.
        if header[257:262] != b"ustar":
            msg = f"no tar header at byte {at}"
            raise AvdataError(msg)
        name = header[:100].partition(b"\0")[0].decode("utf-8", "replace")
        found, _, extension = name.partition(".")
        if key is None:
            key = found
        if found != key:
            msg = f"its place holds the member {name}, of another sample"
            hint = "index.parquet is not of this shard: prepare or download the set again"
            raise AvdataError(msg, hint=hint)
        start = at + BLOCK
        at = start + _octal(header[124:135])
        if at > end:
            msg = f"the member {name} is cut off"
            raise AvdataError(msg)
        members[extension] = view[start:at]
        at += -at % BLOCK
    if not members:
        msg = "its place holds no member"
        raise AvdataError(msg)
    return members


def _octal(field: bytes) -> int:
    try:
        return int(field, 8)
    except ValueError as error:
        msg = f"a tar header gives {field!r} as a size"
        raise AvdataError(msg) from error


def decode_mel(members: Mapping[str, memoryview]) -> np.ndarray:
    """The log-mel of a sample, float16 [T, F, L]."""
    return decode_npy(members["mel.npy"])


def decode_frames(members: Mapping[str, memoryview], steps: int) -> np.ndarray:
    """The frames of a sample, uint8 [T, H, W, C], from any storage."""
    if "frames.npy" in members:
        return decode_npy(members["frames.npy"])
    strip = _picture(members)
    height, width, channels = strip.shape
    return np.ascontiguousarray(strip.reshape(height, steps, width // steps, channels).swapaxes(0, 1))


def _picture(members: Mapping[str, memoryview]) -> np.ndarray:
    """The strip of a sample's frames, uint8 [H, T·W, C].

    By Pillow, whose values are those of the stream's decoder to the bit: who looks at a few samples need not
    wait seconds for torch to be there.
    """
    from PIL import Image  # noqa: PLC0415

    name = "frames.png" if "frames.png" in members else "frames.jpg"
    try:
        with Image.open(io.BytesIO(members[name]), formats=("JPEG", "PNG")) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        msg = f"{name} is not a whole picture ({error})"
        raise AvdataError(msg) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def decode_npy(data: memoryview) -> np.ndarray:
    """An array from the bytes of an `.npy`, sharing their memory; objects are refused.

    Raises:
        AvdataError: it is not a plain npy array, or its data is incomplete.
    """
    plain = bytes(data[:8]) == b"\x93NUMPY\x01\x00" and len(data) > 10
    try:
        # Equal headers, as those of a set's samples are, are parsed once.
        shape, dtype, start = _npy_header(bytes(data[: 10 + data[8] + 256 * data[9] if plain else 4096]))
        return np.frombuffer(data, dtype, count=math.prod(shape), offset=start).reshape(shape)
    except ValueError as error:
        msg = f"not a whole npy array ({error})"
        raise AvdataError(msg) from error


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or fortran:
        msg = f"an array of type {dtype} is not one this format holds"
        raise AvdataError(msg)
    return shape, dtype, stream.tell()


def index_schema() -> pa.Schema:
    """The columns of index.parquet."""
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
    """The columns of quarantine.parquet."""
    import pyarrow as pa  # noqa: PLC0415

    return pa.schema(
        [("key", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("kept", pa.string())]
    )


def parquet_bytes(rows: list[IndexRow], schema: pa.Schema) -> bytes:
    """The rows as a parquet file; equal rows give equal bytes."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def read_index(root: str | Path, columns: list[str] | None = None) -> pa.Table:
    """The index of a prepared set.

    Args:
        root: the set's folder.
        columns: only these; all by default.

    Raises:
        AvdataError: the folder holds no readable index.
    """
    return _read_parquet(Path(root) / "index.parquet", columns)


def read_quarantine(root: str | Path) -> pa.Table:
    """The quarantined clips of a prepared set: key, reason, detail, kept."""
    return _read_parquet(Path(root) / "quarantine.parquet")


def _read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    import pyarrow.parquet as pq  # noqa: PLC0415

    with explained_table(path):
        return pq.read_table(path, columns=columns)


def read_info(root: str | Path) -> dict[str, Any]:
    """The parsed dataset.json of a prepared set.

    Raises:
        AvdataError: there is none, it is not JSON, or it is of a newer format than this version reads.
    """
    check_spelling(root)
    path = Path(root) / "dataset.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        unfinished = (Path(root) / ".avdata").is_dir()
        inside = next(Path(root).glob("*/dataset.json"), None)
        hint = "make one with: avdata prepare" if inside is None else f"did you mean {inside.parent}?"
        if unfinished:
            hint = "run the same prepare command again to finish it"
        elif re.match(r"\w+:/", str(root)):
            hint = "give a folder of this machine; avdata.open streams from a URL"
        msg = f"{root} is not a prepared set: it has no dataset.json"
        raise AvdataError(msg, hint=hint) from error
    except NotADirectoryError as error:
        msg = f"{root} is a file, and a prepared set is a folder"
        raise AvdataError(msg, hint="give the folder that holds dataset.json") from error
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise AvdataError(msg, hint="may you read the folder and its files?") from error
    except ValueError as error:
        msg = f"{path} cannot be read ({error})"
        raise AvdataError(msg, hint="prepare the set again with --overwrite, or fetch it again") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else None
        msg = f"{path} is of format {found!r}, and this version reads format {FORMAT}"
        raise AvdataError(msg, hint="install the avdata that wrote it, or prepare the set again")
    return info
