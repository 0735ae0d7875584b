from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace, VideoReformatter
from torchvision.transforms.v2 import functional as transform

from avdata.config.schema import build_config
from avdata.media.resize import resize_frame, resize_image


@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
def test_resize_image_equals_torchvision(fit: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    resized = resize_image(pixels, build_config({"video": {"size": 48, "resize_mode": fit}}).video)
    assert resized.shape == (48, 48, 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if fit == "letterbox":
        expected = transform.pad(transform.resize(image, [36, 48], antialias=True), [0, 6])
    elif fit == "stretch":
        expected = transform.resize(image, [48, 48], antialias=True)
    else:
        expected = transform.center_crop(transform.resize(image, [48, 64], antialias=True), [48, 48])
    difference = np.abs(resized.astype(int) - expected.permute(1, 2, 0).numpy())
    assert difference.max() <= 1
    assert difference.mean() < 0.02
    if fit == "letterbox":
        assert resized[:6].max() == 0
        assert resized[-6:].max() == 0
        assert resized[6:42].min(axis=(1, 2)).max() > 0


def _yuv_image(height: int, width: int, seed: int) -> np.ndarray:
    """Return a YUV 4:2:0 image in ffmpeg's layout: noise on a gradient, and smooth colors."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width]
    luma = 40 + 150 * across / width + rng.integers(0, 40, (height, width))
    half = down[::2, ::2] / height, across[::2, ::2] / width
    blue, red = 100 + 50 * half[0], 150 - 40 * half[1]
    return np.concatenate([np.rint(plane).astype(np.uint8).ravel() for plane in (luma, blue, red)])


def _as_rgb(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert YUV to RGB by the formula of BT.601 in floating point, [H, W, 3]."""
    luma, blue, red = np.split(planes.astype(np.float64), np.cumsum([height * width, height * width // 4]))
    wide = [np.kron(plane.reshape(height // 2, -1), np.ones((2, 2))) - 128 for plane in (blue, red)]
    bright = (luma.reshape(height, width) - 16) * 255 / 219
    blue, red = (plane * 255 / 224 for plane in wide)
    green = bright - 0.114 * 1.772 / 0.587 * blue - 0.299 * 1.402 / 0.587 * red
    return np.stack([bright + 1.402 * red, green, bright + 1.772 * blue], -1).clip(0, 255)


@pytest.mark.parametrize("shape", [(360, 480), (90, 120), (720, 480)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
def test_resize_frame_equals_torchvision_on_exact_colors(fit: str, shape: tuple[int, int]) -> None:
    planes = _yuv_image(*shape, seed=1)
    frame = av.VideoFrame.from_ndarray(planes.reshape(shape[0] * 3 // 2, shape[1]), format="yuv420p")
    frame.colorspace = int(Colorspace.ITU601)
    resized = resize_frame(
        frame, build_config({"video": {"size": 48, "resize_mode": fit}}).video, VideoReformatter()
    )
    image = torch.from_numpy(_as_rgb(planes, *shape)).permute(2, 0, 1)
    short, long = min(shape), max(shape)
    if fit == "stretch":
        expected = transform.resize(image, [48, 48], antialias=True)
    elif fit == "crop":
        expected = transform.center_crop(transform.resize(image, [48], antialias=True), [48, 48])
    else:
        part = round(short * 48 / long)
        size = [part, 48] if shape[0] == short else [48, part]
        margin = [0, (48 - part) // 2] if shape[0] == short else [(48 - part) // 2, 0]
        expected = transform.pad(transform.resize(image, size, antialias=True), margin)
    difference = resized - expected.permute(1, 2, 0).numpy()
    assert np.abs(difference).mean() < 0.5
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.15


def test_resize_frame_enlarges_and_shrinks_beyond_the_limit_of_swscale() -> None:
    video = build_config({"video": {"size": 48}}).video
    for shape in ((24, 32), (48, 48), (64, 4096), (1600, 1600)):
        frame = av.VideoFrame.from_ndarray(np.full((*shape, 3), 200, np.uint8), format="rgb24")
        resized = resize_frame(frame, video, VideoReformatter())
        assert resized.shape == (48, 48, 3)
        assert np.abs(resized.astype(int) - 200).max() <= 1
