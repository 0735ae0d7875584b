"""Open one media file: what it is, and the types of what `film`, `soundtrack` and this room read from it.

All times are seconds on the container's own axis, as its presentation timestamps say. Streams are chosen by
type. ffmpeg is told the container's format, which the first bytes decide, and may open that one file only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config import QualityConfig
from avdata.errors import Flag, MediaError, Reason
from avdata.route import CLOSE
from avdata.whole import check_whole

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"

MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"FLV\x01", "flv"),
    (8, b"WAVE", "wav"),
    (8, b"AVI ", "avi"),
    (8, b"WEBP", "webp"),
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
)
"""Offset, bytes and ffmpeg's name of each container and image type that is opened; nothing else is."""

STILLS = frozenset({"jpeg", "png", "webp"})


def sniff(path: Path) -> str:
    """The format of a file by its first bytes.

    Raises:
        MediaError: EMPTY_FILE, LFS_POINTER or NOT_MEDIA.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise MediaError(Reason.EMPTY_FILE, "0 bytes")
    if head.startswith(LFS_POINTER):
        raise MediaError(Reason.LFS_POINTER, "git-LFS pointer text")
    for offset, magic, name in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE6 == 0xE2:
        return "mp3"
    shown = repr(head[:16]).removeprefix("b")
    raise MediaError(Reason.NOT_MEDIA, f"it begins with {shown}")


@dataclass(frozen=True, slots=True)
class Sound:
    """A decoded sound track: mono float32 samples in [-1, 1], rate, when the first one is heard, facts."""

    samples: np.ndarray
    rate: int
    start: float
    facts: dict[str, Any]

    @property
    def end(self) -> float:
        """When the last sample ends, s."""
        return self.start + len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Clock:
    """When each frame of a video comes on screen, s ascending; when the last one ends; facts; flags."""

    times: np.ndarray
    end: float
    facts: dict[str, Any]
    flags: tuple[Flag, ...]

    @property
    def start(self) -> float:
        """When the first frame comes on screen, s."""
        return float(self.times[0])


@contextmanager
def opened(path: Path, quality: QualityConfig) -> Iterator[Any]:
    """The container of a file: of the format its first bytes tell, whole, and of that one file only.

    Raises:
        MediaError: TRUNCATED, UNREADABLE, NOT_MEDIA for a still image, or what `sniff` finds.
    """
    import av  # noqa: PLC0415

    name = sniff(path)
    if name in STILLS:
        raise MediaError(Reason.NOT_MEDIA, f"{path.name} is a still image ({name})")
    check_whole(path, name)
    try:
        # max_pixels is for the decoders that look at the first frames to learn what they are.
        options = {"protocol_whitelist": "file", "enable_drefs": "0", "max_pixels": str(quality.max_pixels)}
        with av.open(
            f"file:{os.path.abspath(path)}", format=name, options=options, metadata_errors="ignore"
        ) as container:
            yield container
    except av.FFmpegError as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame: uint8 [H, W, 3] and when it comes on screen, s."""

    pixels: np.ndarray
    time: float


def read_pictures_decord(path: Path, clock: Clock, moments: Sequence[float]) -> list[Picture]:
    """The same frames as `read_pictures`, through decord; times come from the clock, which decord loses.

    Raises:
        MediaError: UNREADABLE.
    """
    import decord  # noqa: PLC0415

    late = np.asarray(moments) + CLOSE
    places = np.clip(np.searchsorted(clock.times, late, side="right") - 1, 0, len(clock.times) - 1)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        pixels = reader.get_batch([min(int(place), len(reader) - 1) for place in places]).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: decord cannot read it") from error
    return [
        Picture(picture, float(clock.times[place])) for picture, place in zip(pixels, places, strict=True)
    ]


@contextmanager
def _unwarned(kind: type[Warning]) -> Iterator[None]:
    # PIL warns of half of what it refuses; the limit that counts is ours.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kind)
        yield


def read_still(path: Path, quality: QualityConfig) -> Picture:
    """A still image as RGB, turned as its EXIF says.

    Raises:
        MediaError: NOT_MEDIA, TOO_LARGE, UNREADABLE.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    name = sniff(path)
    if name not in STILLS:
        raise MediaError(Reason.NOT_MEDIA, f"{path.name} is {name}, not a still image")
    try:
        with _unwarned(Image.DecompressionBombWarning), Image.open(path, formats=[name.upper()]) as image:
            if image.width * image.height > quality.max_pixels:
                raise MediaError(Reason.TOO_LARGE, f"{path.name}: {image.width}×{image.height} pixels")
            turned = ImageOps.exif_transpose(image)
            return Picture(np.array(turned.convert("RGB")), 0.0)
    except Image.DecompressionBombError as error:
        raise MediaError(Reason.TOO_LARGE, f"{path.name}: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: {error}") from error
