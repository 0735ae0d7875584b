"""Reader."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import AvdataError
from avdata.shards.format import FORMAT_VERSION, TAR_BLOCK
from avdata.storage.paths import check_path_encoding

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Turn what reading a table raises into a sentence.

    Raises:
        AvdataError: it is missing or cannot be read.
    """
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        # pyarrow's words for a file that is not there are its path
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        msg = f"{path} cannot be read ({why})"
        raise AvdataError(msg, hint="prepare the set again, or check that it is a prepared set") from error


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
    while at + TAR_BLOCK <= end and view[at]:
        header = bytes(view[at : at + TAR_BLOCK])
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
        start = at + TAR_BLOCK
        at = start + _octal(header[124:135])
        if at > end:
            msg = f"the member {name} is cut off"
            raise AvdataError(msg)
        members[extension] = view[start:at]
        at += -at % TAR_BLOCK
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

    with table_errors(path):
        return pq.read_table(path, columns=columns)


def read_info(root: str | Path) -> dict[str, Any]:
    """The parsed dataset.json of a prepared set.

    Raises:
        AvdataError: there is none, it is not JSON, or it is of a newer format than this version reads.
    """
    check_path_encoding(root)
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
    if not isinstance(info, dict) or info.get("format") != FORMAT_VERSION:
        found = info.get("format") if isinstance(info, dict) else None
        msg = (
            f"Unsupported format version in {path}: {found!r}; this version of avdata reads {FORMAT_VERSION}."
        )
        raise AvdataError(msg, hint="install the avdata that wrote it, or prepare the set again")
    return info
