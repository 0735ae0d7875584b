from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.containers import SMALL_SCENE

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio import decode_audio
from avdata.media.formats import detect_format
from avdata.media.video import read_frame_times
from avdata.testing.media import write_av, write_image

QUALITY = QualityConfig()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_container_rejects_image_named_mp4(tmp_path: Path, suffix: str) -> None:
    image = tmp_path / f"image.{suffix}"
    write_image(image, np.zeros((8, 8, 3), np.uint8))
    named = image.rename(tmp_path / "clip.mp4")
    for read in (read_frame_times, decode_audio):
        with pytest.raises(MediaError) as caught:
            read(named, QUALITY)
        assert caught.value.reason is QuarantineReason.NOT_MEDIA


def test_container_rejects_playlist_named_mp4(tmp_path: Path) -> None:
    write_av(tmp_path / "real.mp4", SMALL_SCENE, vcodec="libx264", acodec="aac")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    for read in (decode_audio, read_frame_times):
        with pytest.raises(MediaError) as caught:
            read(tmp_path / "list.mp4", QUALITY)
        assert caught.value.reason is QuarantineReason.NOT_MEDIA


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", QuarantineReason.EMPTY_FILE),
        (b"version https://git-lfs.github.com/spec/v1\noid", QuarantineReason.LFS_POINTER),
        (b"<html>quota exceeded</html>", QuarantineReason.NOT_MEDIA),
    ],
)
def test_detect_format_rejects_non_media_by_its_first_bytes(
    tmp_path: Path, data: bytes, reason: QuarantineReason
) -> None:
    (tmp_path / "x.flv").write_bytes(data)
    with pytest.raises(MediaError) as caught:
        detect_format(tmp_path / "x.flv")
    assert caught.value.reason is reason


def test_limits_apply_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_av(path, SMALL_SCENE, vcodec="libx264", acodec="aac")
    with pytest.raises(MediaError, match="too_large"):
        read_frame_times(path, QualityConfig(max_pixels=100))
    with pytest.raises(MediaError, match="too_long"):
        read_frame_times(path, QualityConfig(max_seconds=1.0))
    with pytest.raises(MediaError, match="too_long"):
        decode_audio(path, QualityConfig(max_seconds=1.0))
