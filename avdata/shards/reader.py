"""Reading of a local prepared dataset: dataset.json, the Parquet tables, and the members of a sample."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import AvdataError
from avdata.shards.dataset_info import check_shard_paths, parse_info
from avdata.shards.format import TAR_BLOCK
from avdata.storage.paths import check_path_encoding

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Raise AvdataError in place of the errors of reading a Parquet table.

    Args:
        path: the table, for the message.

    Raises:
        AvdataError: the table is missing or cannot be read.
    """
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        # For a missing file, pyarrow's message is only the path.
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        msg = f"{path} cannot be read ({reason})"
        raise AvdataError(msg, hint="Prepare the dataset again with --overwrite.") from error


def read_members(buffer: bytes | memoryview, key: str | None = None) -> dict[str, memoryview]:
    """Return the members of a sample by extension, as views of its bytes.

    Args:
        buffer: the bytes of the sample in its shard, from its index row's offset and nbytes.
        key: the sample's key (default: the key of the first member).

    Raises:
        AvdataError: the bytes are not complete USTAR members of this key.
    """
    view = memoryview(buffer)
    members: dict[str, memoryview] = {}
    position, end = 0, len(view)
    while position + TAR_BLOCK <= end and view[position]:
        header = bytes(view[position : position + TAR_BLOCK])
        # Only `verify` uses tarfile, which checks header checksums: parsing a header with it takes 20 µs.
        # Other types of members, such as pax headers, change the size and name of the next one.
        if header[257:262] != b"ustar" or header[156] not in _REGULAR_FILE:
            msg = f"Missing tar header of a regular file at byte {position} of the sample."
            raise AvdataError(msg)
        name = header[:100].partition(b"\0")[0].decode("utf-8", "replace")
        member_key, _, extension = name.partition(".")
        if key is None:
            key = member_key
        if member_key != key:
            msg = f"Member {name} belongs to another sample."
            hint = "Prepare or download the dataset again: index.parquet does not match this shard."
            raise AvdataError(msg, hint=hint)
        start = position + TAR_BLOCK
        stop = start + _parse_octal(header[124:135])
        if stop > end:
            msg = f"Member {name} is truncated."
            raise AvdataError(msg)
        members[extension] = view[start:stop]
        assert stop >= start > position  # every member advances, so the loop ends
        position = stop + -stop % TAR_BLOCK
    if not members:
        msg = "No tar member at the sample's offset."
        raise AvdataError(msg)
    return members


_REGULAR_FILE = b"0\0"
"""Type flags of a regular file."""

_OCTAL = re.compile(rb"[0-7]+")


def _parse_octal(field: bytes) -> int:
    # int() alone also accepts a sign, blanks, underscores and a prefix. A negative size would never end.
    if not _OCTAL.fullmatch(field):
        msg = f"Invalid size in a tar header: {field!r}."
        raise AvdataError(msg)
    return int(field, 8)


def decode_mel(members: Mapping[str, memoryview]) -> np.ndarray:
    """Return the log-mel of a sample, float16 [T, F, L]."""
    return decode_npy(members["mel.npy"])


def decode_frames(members: Mapping[str, memoryview], steps: int) -> np.ndarray:
    """Return the frames of a sample, uint8 [T, H, W, C], from any storage.

    Args:
        members: the sample's members by extension.
        steps: number of frames T.

    Raises:
        AvdataError: the image or array cannot be decoded.
    """
    if "frames.npy" in members:
        return decode_npy(members["frames.npy"])
    strip = _decode_strip(members)
    height, width, channels = strip.shape
    return np.ascontiguousarray(strip.reshape(height, steps, width // steps, channels).swapaxes(0, 1))


def _decode_strip(members: Mapping[str, memoryview]) -> np.ndarray:
    """Decode the frame strip of a sample, uint8 [H, T·W, C].

    Uses Pillow, because importing torch takes seconds. Its pixels equal those of the streaming decoder.
    """
    from PIL import Image  # noqa: PLC0415

    name = "frames.png" if "frames.png" in members else "frames.jpg"
    try:
        with Image.open(io.BytesIO(members[name]), formats=("JPEG", "PNG")) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        msg = f"{name} is truncated or not an image ({error})"
        raise AvdataError(msg) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def decode_npy(data: memoryview) -> np.ndarray:
    """Return the array of an `.npy` file as a view of its bytes. Object arrays are refused.

    Raises:
        AvdataError: the bytes are not a plain npy array, or are incomplete.
    """
    plain = bytes(data[:8]) == b"\x93NUMPY\x01\x00" and len(data) > 10
    try:
        # All samples of a dataset have the same header, so the parsed header is cached.
        shape, dtype, start = _npy_header(bytes(data[: 10 + data[8] + 256 * data[9] if plain else 4096]))
        return np.frombuffer(data, dtype, count=math.prod(shape), offset=start).reshape(shape)
    except ValueError as error:
        msg = f"Truncated or invalid npy array ({error})."
        raise AvdataError(msg) from error


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or fortran:
        msg = f"Unsupported npy array: dtype {dtype}, Fortran order {fortran}."
        raise AvdataError(msg)
    return shape, dtype, stream.tell()


def read_index(root: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read the index of a prepared dataset.

    Args:
        root: folder of the dataset.
        columns: columns to read (default: all).

    Raises:
        AvdataError: the index is missing, cannot be read, or holds an unsafe path.
    """
    path = Path(root) / "index.parquet"
    index = _read_parquet(path, columns)
    if "shard" in index.column_names:
        check_shard_paths(index["shard"].unique().to_pylist(), path)
    return index


def read_quarantine(root: str | Path) -> pa.Table:
    """Read the quarantined clips of a prepared dataset: key, reason, detail, kept."""
    return _read_parquet(Path(root) / "quarantine.parquet")


def _read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    import pyarrow.parquet as pq  # noqa: PLC0415

    with table_errors(path):
        return pq.read_table(path, columns=columns)


def read_info(root: str | Path) -> dict[str, Any]:
    """Read and parse the dataset.json of a prepared dataset.

    Raises:
        AvdataError: the file is missing, is not JSON, has another format version, or holds an unsafe name.
    """
    check_path_encoding(root)
    path = Path(root) / "dataset.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        msg = f"{root} is not a prepared dataset: dataset.json is missing."
        raise AvdataError(msg, hint=_missing_info_hint(Path(root))) from error
    except NotADirectoryError as error:
        msg = f"{root} is not a prepared dataset: it is a file."
        raise AvdataError(msg, hint="Pass the folder that contains dataset.json.") from error
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise AvdataError(msg, hint="Check the permissions of the folder and its files.") from error
    return parse_info(data, path)


def _missing_info_hint(root: Path) -> str:
    if (root / ".avdata").is_dir():
        return "Run the same prepare command again to finish it."
    if re.match(r"\w+:/", str(root)):
        return "Pass a local folder. avdata.open streams from a URL."
    subfolder = next(root.glob("*/dataset.json"), None)
    return (
        "Prepare a dataset with: avdata prepare" if subfolder is None else f"Did you mean {subfolder.parent}?"
    )
