"""From the bytes of a sample to its arrays, as the stream does it: no copy but the one into the batch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from avdata.errors import AvdataError
from avdata.shards import decode_npy, decode_strip, iter_members


@dataclass(frozen=True, slots=True)
class Shape:
    """The shapes of a set: mel (T, F, L) and frames (T, H, W, C)."""

    mel: tuple[int, ...]
    frames: tuple[int, ...]

    def empty_frames(self, count: int, *, jpeg: bool) -> np.ndarray:
        """Room for frames in the layout that their storage fills fastest."""
        steps, height, width, channels = self.frames
        # numpy asks the kernel for huge pages, torch does not: page faults cost as much as the copy.
        return np.empty((count, steps, channels, height, width) if jpeg else (count, *self.frames), np.uint8)

    def tensor(self, frames: np.ndarray, *, jpeg: bool) -> torch.Tensor:
        """The same memory as uint8 [B, T, C, H, W]."""
        made = torch.from_numpy(frames)
        return made if jpeg else made.permute(0, 1, 4, 2, 3)

    def check(self, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        """Refuse an array that is not what dataset.json says.

        Raises:
            AvdataError: its shape or type is another.
        """
        if array.shape != shape or array.dtype != dtype:
            msg = f"an array is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}"
            raise AvdataError(msg)


def named_members(data: memoryview, key: str) -> dict[str, memoryview]:
    """The members of a sample by extension.

    Raises:
        AvdataError: the bytes are not whole members, or those of another sample.
    """
    members = {}
    for name, content in iter_members(data):
        found, _, extension = name.rpartition("/")[2].partition(".")
        if found != key:
            msg = f"its place holds the member {name}, of another sample"
            raise AvdataError(
                msg, hint="index.parquet is not of this shard: prepare or download the set again"
            )
        members[extension] = content
    if not members:
        msg = "its place is empty"
        raise AvdataError(msg)
    return members


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    stream = io.BytesIO(head)
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or fortran:
        msg = f"an array of type {dtype} is not one this format holds"
        raise AvdataError(msg)
    return shape, dtype, stream.tell()


def open_npy(data: memoryview) -> np.ndarray:
    """An array that shares the memory of an `.npy`; equal headers are parsed once.

    Raises:
        AvdataError: it is not a plain npy array, or its data is incomplete.
    """
    if bytes(data[:8]) != b"\x93NUMPY\x01\x00":
        return decode_npy(data)
    shape, dtype, start = _npy_header(bytes(data[: 10 + data[8] + 256 * data[9]]))
    return np.frombuffer(data, dtype, count=int(np.prod(shape)), offset=start).reshape(shape)


def fill_frames(members: Mapping[str, memoryview], shape: Shape, out: np.ndarray) -> None:
    """Write a sample's frames into `out`, [T, H, W, C], or [T, C, H, W] when the channels come second.

    Raises:
        AvdataError: the frames are not of the set's shape.
    """
    steps, height, width, channels = shape.frames
    last = out.shape == shape.frames
    if "frames.npy" in members:
        stored = open_npy(members["frames.npy"])
        shape.check(stored, shape.frames, np.uint8)
        out[:] = stored if last else stored.transpose(0, 3, 1, 2)
        return
    strip = decode_strip(members)
    shape.check(strip, (channels, height, steps * width), np.uint8)
    frames = strip.reshape(channels, height, steps, width)
    out[:] = frames.transpose(2, 1, 3, 0) if last else frames.transpose(2, 0, 1, 3)
