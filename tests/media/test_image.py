from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from support.containers import SMALL_SCENE

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.image import read_image
from avdata.testing.media import scene_frame, write_image

QUALITY = QualityConfig()


@pytest.mark.parametrize("side", [12_000, 30_000])
def test_read_image_rejects_too_many_pixels_by_the_header(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    with pytest.raises(MediaError) as caught:
        read_image(path, QualityConfig())
    assert caught.value.reason is QuarantineReason.TOO_LARGE


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "png")])
def test_read_image_converts_every_mode_to_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    pixels = scene_frame(SMALL_SCENE, 3)
    write_image(tmp_path / f"a.{suffix}", pixels, mode=mode)
    pixels_read = read_image(tmp_path / f"a.{suffix}", QUALITY).pixels
    assert pixels_read.shape == pixels.shape
    gray = np.abs(pixels_read.mean(axis=2) - pixels.mean(axis=2)).mean()
    assert gray < 20


# The place of the stored first row and first column on screen, by the EXIF standard, as numpy operations.
ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_read_image_applies_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    colors = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    pixels = np.kron(colors, np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    expected = ORIENTATIONS[orientation](pixels)
    pixels_read = read_image(path, QUALITY).pixels
    assert pixels_read.shape == expected.shape
    assert np.abs(pixels_read.astype(int) - expected).mean() < 8
