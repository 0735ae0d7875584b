from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.image import read_image

QUALITY = QualityConfig()


@pytest.mark.parametrize("side", [12_000, 30_000])
def test_read_image_rejects_too_many_pixels_by_the_header(tmp_path: Path, side: int) -> None:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")
    )
    with pytest.raises(MediaError) as caught:
        read_image(path, QualityConfig())
    assert caught.value.reason is QuarantineReason.TOO_LARGE


GRAY_16 = np.linspace(0, 65_535, 48 * 64).reshape(48, 64).astype(np.uint16)
RGB_16 = np.stack([GRAY_16, GRAY_16[::-1], GRAY_16[:, ::-1]], -1)
RGB_8 = (RGB_16 >> 8).astype(np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png(path: Path, samples: np.ndarray, color_type: int) -> None:
    """Write a PNG of 16 bits per channel, which Pillow writes only in gray."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
def test_read_image_uses_the_upper_8_of_16_bits(tmp_path: Path, color_type: int) -> None:
    alpha = np.full((*GRAY_16.shape, 1), 30_000, np.uint16)
    color = RGB_16 if color_type & 2 else GRAY_16[..., None]
    write_png(tmp_path / "a.png", np.dstack([color, alpha]) if color_type & 4 else color, color_type)
    expected = np.broadcast_to(color >> 8, (48, 64, 3))
    assert np.array_equal(read_image(tmp_path / "a.png", QUALITY).pixels, expected)


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_read_image_ignores_transparency(tmp_path: Path, mode: str, suffix: str) -> None:
    alpha = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64, 1).astype(np.uint8)
    image = Image.fromarray(RGB_8 if mode == "RGB" else np.dstack([RGB_8, alpha]))
    image.save(tmp_path / f"a.{suffix}", lossless=True, exact=True)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}", QUALITY).pixels, RGB_8)


def test_read_image_reads_one_bit_gray_with_alpha_and_palettes(tmp_path: Path) -> None:
    gray = RGB_8[..., 0]
    Image.fromarray(gray > 99).save(tmp_path / "bit.png")
    bits = read_image(tmp_path / "bit.png", QUALITY).pixels
    assert np.array_equal(bits, np.repeat((gray > 99)[..., None] * np.uint8(255), 3, 2))
    Image.fromarray(np.dstack([gray, gray])).save(tmp_path / "la.png")
    assert np.array_equal(read_image(tmp_path / "la.png", QUALITY).pixels, np.repeat(gray[..., None], 3, 2))
    palette = Image.fromarray(RGB_8).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    colors = np.array(palette.getpalette()[:48]).reshape(16, 3)
    assert np.array_equal(read_image(tmp_path / "palette.png", QUALITY).pixels, colors[np.array(palette)])


def test_read_image_converts_cmyk_as_the_complement_of_its_inks(tmp_path: Path) -> None:
    Image.fromarray(RGB_8).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    pixels = read_image(tmp_path / "a.jpg", QUALITY).pixels
    assert np.abs(pixels.astype(int) - RGB_8).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_read_image_ignores_damaged_exif(
    tmp_path: Path, suffix: str, recwarn: pytest.WarningsRecorder
) -> None:
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff")):
        path = tmp_path / f"{number}.{suffix}"
        Image.fromarray(RGB_8).save(path, exif=exif)
        assert read_image(path, QUALITY).pixels.shape == RGB_8.shape
    assert not recwarn.list


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
