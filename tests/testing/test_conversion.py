"""Media that the `ffmpeg` program writes, read by PyAV."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from avdata.config.schema import QualityConfig
from avdata.errors import AvdataError, UsageError
from avdata.media.video import read_frame_times, read_frames
from avdata.testing import Scene, convert_av, write_av
from avdata.testing import conversion as conversion_module

SCENE = Scene(seconds=0.4, size=(96, 64), rate=48_000)


@pytest.fixture
def lossless(tmp_path: Path) -> Path:
    path = tmp_path / "lossless.mkv"
    write_av(path, SCENE, vcodec="ffv1", acodec="flac", pix_fmt="yuv420p")
    return path


def test_convert_av_writes_a_codec_that_pyav_cannot_encode(lossless: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="libvvenc"):
        av.codec.Codec("libvvenc", "w")
    target = tmp_path / "new" / "clip.mp4"
    options = {"vcodec": "libvvenc", "preset": "faster", "acodec": "aac"}
    convert_av(lossless, target, options=options)
    times = read_frame_times(target, QualityConfig())
    assert times.metadata["video_codec"] == "vvc"
    assert len(times.times) == SCENE.frames
    assert len(read_frames(target, [0.1, 0.3], QualityConfig())) == 2
    written = target.read_bytes()
    convert_av(lossless, target, options=options)
    assert target.read_bytes() == written


def test_convert_av_writes_a_display_matrix(lossless: Path, tmp_path: Path) -> None:
    upright, sideways = tmp_path / "upright.mp4", tmp_path / "sideways.mp4"
    convert_av(lossless, upright, options={"vcodec": "libx264", "acodec": "aac"})
    convert_av(upright, sideways, input_options={"display_rotation": 90}, options={"c": "copy"})
    (frame,) = read_frames(sideways, [0.1], QualityConfig())
    assert frame.pixels.shape == (SCENE.size[0], SCENE.size[1], 3)


def test_convert_av_names_the_files_and_the_error(lossless: Path, tmp_path: Path) -> None:
    with pytest.raises(AvdataError, match=r"cannot convert .*lossless\.mkv to .*a\.mp4: "):
        convert_av(lossless, tmp_path / "a.mp4", options={"vcodec": "no-such-codec"})


def test_convert_av_without_a_program_is_a_usage_error(
    lossless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    convert_av(lossless, tmp_path / "a.mkv", options={"c": "copy"})  # that of imageio-ffmpeg
    monkeypatch.setattr(conversion_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install imageio-ffmpeg"):
        convert_av(lossless, tmp_path / "b.mkv", options={"c": "copy"})
