from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
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


def test_read_image_applies_exif_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:20, :20] = 255
    write_image(tmp_path / "a.jpg", pixels, turned=True)
    pixels_read = read_image(tmp_path / "a.jpg", QUALITY).pixels
    assert pixels_read.shape == pixels.shape
    assert pixels_read[5, 5].mean() > 200
    assert pixels_read[50, 70].mean() < 50
