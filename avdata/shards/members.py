"""Members of a sample: tar headers, arrays, images and JSON, decoded from the bytes of the sample.

Every function refuses what the format does not define with an `AvdataError`, before it allocates memory for
it: sizes and shapes of headers are compared with the bytes and with dataset.json first.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import tokenize
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from avdata.errors import AvdataError, shorten
from avdata.shards.format import TAR_BLOCK


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
        # Only `verify` uses tarfile, which checks header checksums: parsing a header with it takes 20 µs.
        raw_name, size, kind, magic = struct.unpack_from(_HEADER, view, position)
        # Other types of members, such as pax headers, change the size and name of the next one.
        if magic != b"ustar" or kind not in _REGULAR_FILE:
            msg = f"Missing tar header of a regular file at byte {position} of the sample."
            raise AvdataError(msg)
        name = raw_name.partition(b"\0")[0].decode("utf-8", "replace")
        member_key, _, extension = name.partition(".")
        if key is None:
            key = member_key
        if member_key != key:
            msg = f"Member {name} belongs to another sample."
            hint = "Prepare or download the dataset again: index.parquet does not match this shard."
            raise AvdataError(msg, hint=hint)
        start = position + TAR_BLOCK
        stop = start + _parse_octal(size)
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


_HEADER = "100s 24x 11s 21x c 100x 5s"
"""Name, size, type and magic of a USTAR header."""

_REGULAR_FILE = b"0\0"
"""Type flags of a regular file."""

_OCTAL = re.compile(rb"[0-7]+")


@lru_cache(maxsize=1024)
def _parse_octal(field: bytes) -> int:
    # int() alone also accepts a sign, blanks, underscores and a prefix. A negative size would never end.
    if not _OCTAL.fullmatch(field):
        msg = f"Invalid size in a tar header: {field!r}."
        raise AvdataError(msg)
    return int(field, 8)


def member_extensions(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the extensions of every sample's members, in their order.

    Args:
        info: content of dataset.json.
    """
    storage = {"jpeg": "frames.jpg", "png": "frames.png", "npy": "frames.npy"}
    frames = (storage[info["config"]["video"]["storage"]],) if info["shape"]["frames"] else ()
    flac = ("flac",) if info["config"]["audio"]["flac"] else ()
    return ("cls", *flac, *frames, "json", "mel.npy")


def decode_label(members: Mapping[str, memoryview]) -> int:
    """Return the label index of a sample.

    Raises:
        AvdataError: the member is missing or not a number.
    """
    text = bytes(_member(members, "cls")[:10])
    if not _LABEL.fullmatch(text):
        msg = f"cls is not a label index: {text!r}."
        raise AvdataError(msg)
    return int(text)


_LABEL = re.compile(rb"[0-9]{1,9}")


def decode_metadata(members: Mapping[str, memoryview], steps: int) -> dict[str, Any]:
    """Return the JSON of a sample.

    Args:
        members: the sample's members by extension.
        steps: number of steps T.

    Raises:
        AvdataError: the member is missing, not a JSON object, or a field that readers use is invalid.
    """
    return parse_metadata(bytes(_member(members, "json")), steps)


def parse_metadata(text: bytes, steps: int) -> dict[str, Any]:
    """Return the content of a JSON member; see `decode_metadata`."""
    try:
        metadata = _decoder().decode(text.decode())
    except (ValueError, RecursionError) as error:
        msg = f"json cannot be read ({error})."
        raise AvdataError(msg) from error
    if not isinstance(metadata, dict):
        msg = "json is not an object."
        raise AvdataError(msg)
    for name, is_valid in _METADATA.items():
        if name in metadata and not is_valid(metadata[name]):
            msg = f"json has an invalid {name}: {str(metadata[name])[:40]!r}."
            raise AvdataError(msg)
    labels = metadata.get("step_labels")
    if labels is not None and len(labels) != steps:
        msg = f"json has {len(labels)} step_labels, not {steps}."
        raise AvdataError(msg)
    return metadata


def _refuse_constant(name: str) -> None:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


@lru_cache(maxsize=1)
def _decoder() -> json.JSONDecoder:
    """Return a decoder, which `json.loads` would create at each call; no global, as it cannot be pickled."""
    return json.JSONDecoder(parse_constant=_refuse_constant)


def _is_text(value: object) -> bool:
    """Return whether a value is text without lone surrogates, which only paths of source files may have."""
    return isinstance(value, str) and not _SURROGATE.search(value)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


_MAX_NUMBER = 2**31

_METADATA: dict[str, Callable[[object], bool]] = {
    "key": _is_text,
    "split": _is_text,
    "label_name": _is_text,
    "group": _is_text,
    "window_start": _is_number,
    "window_end": _is_number,
    "step_times": _is_numbers,
    "frame_times": _is_numbers,
    "event": lambda value: _is_numbers(value) and len(value) == 2,  # type: ignore[arg-type]
    "step_labels": lambda value: isinstance(value, list) and all(map(_is_index, value)),
    "flags": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "media": lambda value: isinstance(value, dict),
    "sources": lambda value: isinstance(value, dict),
}
"""Fields that readers use, and whether a value is valid."""


def decode_mel(members: Mapping[str, memoryview], shape: Sequence[int]) -> np.ndarray:
    """Return the log-mel of a sample, float16 [T, F, L].

    Args:
        members: the sample's members by extension.
        shape: [T, F, L].

    Raises:
        AvdataError: the member is missing or not an array of this shape.
    """
    return _checked(decode_npy(_member(members, "mel.npy")), "mel", shape, np.float16)


def decode_frames(members: Mapping[str, memoryview], shape: Sequence[int]) -> np.ndarray:
    """Return the frames of a sample, uint8 [T, H, W, C], from any storage.

    Args:
        members: the sample's members by extension.
        shape: [T, H, W, C].

    Raises:
        AvdataError: the member is missing, or not an image or array of this shape.
    """
    if "frames.npy" in members:
        return _checked(decode_npy(members["frames.npy"]), "frames", shape, np.uint8)
    steps, height, width, channels = shape
    strip = _decode_strip(members, shape)
    return np.ascontiguousarray(strip.reshape(height, steps, width, channels).swapaxes(0, 1))


def _member(members: Mapping[str, memoryview], name: str) -> memoryview:
    if name not in members:
        msg = f"member {name} is missing"
        raise AvdataError(msg)
    return members[name]


def _checked(array: np.ndarray, name: str, shape: Sequence[int], dtype: type) -> np.ndarray:
    if list(array.shape) != list(shape) or array.dtype != dtype:
        expected = f"{np.dtype(dtype)} {list(shape)}"
        msg = f"{name} has shape {list(array.shape)} of {array.dtype}, not {expected}."
        raise AvdataError(msg)
    return array


def _decode_strip(members: Mapping[str, memoryview], shape: Sequence[int]) -> np.ndarray:
    """Decode the frame strip of a sample, uint8 [H, T·W, C].

    Uses Pillow, because importing torch takes seconds. Its pixels equal those of the streaming decoder.
    """
    from PIL import Image  # noqa: PLC0415

    name = check_strip(members, shape)
    kind = "PNG" if name == "frames.png" else "JPEG"
    try:
        with Image.open(io.BytesIO(members[name]), formats=(kind,)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        msg = f"{name} is truncated or not an image ({error})"
        raise AvdataError(msg) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def check_strip(members: Mapping[str, memoryview], shape: Sequence[int]) -> str:
    """Check the size of a sample's frame strip in its header, and return the name of the member.

    A decoder allocates the size that the header states, which a few bytes can set to gigabytes.

    Args:
        members: the sample's members by extension.
        shape: [T, H, W, C].

    Raises:
        AvdataError: the member is missing, of another format, or of another size.
    """
    name = "frames.png" if "frames.png" in members else "frames.jpg"
    data = _member(members, name)
    size = _png_size(data) if name == "frames.png" else _jpeg_size(data)
    steps, height, width, channels = shape
    if size is None:
        msg = f"{name} is truncated or not an image of the format."
        raise AvdataError(msg)
    if size != (height, steps * width, channels):
        msg = f"{name} has the shape {list(size)}, not {[height, steps * width, channels]}."
        raise AvdataError(msg)
    return name


def _png_size(data: memoryview) -> tuple[int, int, int] | None:
    """Return height, width and channels of a PNG of 8 bits without interlacing, from its first chunk."""
    if len(data) < 33 or bytes(data[:16]) != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return None
    width, height, depth, color, *rest = struct.unpack_from(">IIBBBBB", data, 16)
    channels = {0: 1, 2: 3}.get(color)
    return (height, width, channels) if depth == 8 and channels and not any(rest) else None


_JPEG_SEGMENTS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Segments that may precede the frame header: tables, restart interval, comment and application data."""


def _jpeg_size(data: memoryview) -> tuple[int, int, int] | None:
    """Return height, width and channels of a baseline JPEG from its frame header.

    Decoding time of progressive JPEGs is not bounded by their size, and the format has none.
    """
    if bytes(data[:2]) != b"\xff\xd8":
        return None
    position, end = 2, len(data) - 10
    while position <= end and data[position] == 0xFF:
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        if marker == 0xC0:
            depth, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            return (height, width, channels) if depth == 8 else None
        if marker not in _JPEG_SEGMENTS or length < 2:
            return None
        position += 2 + length
    return None


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
    except (ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError, RecursionError) as error:
        msg = f"Truncated or invalid npy array ({shorten(error)})."
        raise AvdataError(msg) from error


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    is_plain = dtype.kind in "iuf" and dtype.isnative and not fortran
    if not is_plain or any(type(size) is not int or size < 0 for size in shape):
        msg = f"Unsupported npy array: dtype {dtype}, shape {shape}, Fortran order {fortran}."
        raise AvdataError(msg)
    return shape, dtype, stream.tell()
