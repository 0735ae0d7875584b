from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ffmpeg
import numpy as np
import pytest
import soundfile

from avdata.config.schema import Config, build_config
from avdata.errors import MediaError, QuarantineReason, SampleFlag
from avdata.features.extract import extract_features
from avdata.recipe import Clip
from avdata.testing.media import NTSC, Scene, scene_audio, scene_frame, write_av, write_wav

SCENE = Scene(seconds=2.0, flashes=(1.0,), beeps=(1.0,), size=(64, 48), fps=Fraction(25))


def clip(video: Path, audio: Path | None = None) -> Clip:
    return Clip(key="k", label="a", group="g", split="train", video=video, audio=audio)


def quarantine_reason(sample_clip: Clip, **quality: object) -> QuarantineReason:
    with pytest.raises(MediaError) as caught:
        extract_features(sample_clip, build_config({"quality": quality}))
    return caught.value.reason


def test_clipped_audio_is_flagged_or_quarantined_by_its_share(tmp_path: Path) -> None:
    waveform = np.clip(scene_audio(SCENE, 16_000) * 30, -1, 1)
    share = float(np.mean(np.abs(waveform) >= 0.999))
    write_av(tmp_path / "a.flv", SCENE)
    write_wav(tmp_path / "a.wav", waveform, 16_000)
    source_clip = clip(tmp_path / "a.flv", tmp_path / "a.wav")
    assert SampleFlag.CLIPPED_AUDIO in extract_features(source_clip, Config()).flags
    assert quarantine_reason(source_clip, clipped="quarantine") is QuarantineReason.CLIPPED_AUDIO
    lenient = build_config({"quality": {"clipped": "quarantine", "max_clipped": share + 0.001}})
    assert SampleFlag.CLIPPED_AUDIO not in extract_features(source_clip, lenient).flags


def test_frozen_video_is_flagged_or_quarantined(tmp_path: Path) -> None:
    # The encoder adds a little noise.
    write_av(tmp_path / "a.flv", SCENE, pixels=[scene_frame(SCENE, 3)] * SCENE.frames)
    source_clip = clip(tmp_path / "a.flv")
    assert SampleFlag.FROZEN_FRAMES in extract_features(source_clip, Config()).flags
    assert quarantine_reason(source_clip, frozen="quarantine") is QuarantineReason.FROZEN_FRAMES
    write_av(tmp_path / "b.flv", SCENE)
    assert SampleFlag.FROZEN_FRAMES not in extract_features(clip(tmp_path / "b.flv"), Config()).flags


def moving_square(background: int, foreground: int) -> list[np.ndarray]:
    """Return frames [48, 64, 3] in which a square of 6 pixels moves along the left edge."""
    frames = [np.full((48, 64, 3), background, np.uint8) for _ in range(SCENE.frames)]
    for number, frame in enumerate(frames):
        frame[number % 40 : number % 40 + 6, :6] = foreground
    return frames


VIDEOS = [
    {"size": 16},
    {"size": 128},
    {"size": 224, "color": "gray"},
    {"size": 32, "resize_mode": "letterbox"},
    {"size": 32, "resize_mode": "stretch"},
    {"size": 32, "short_side": 128},
    {"size": 128, "decoder": "ffmpeg"},
]


@pytest.mark.parametrize("video", VIDEOS, ids=str)
def test_frozen_and_black_flags_are_equal_for_every_size_and_crop(
    tmp_path: Path, video: dict[str, object]
) -> None:
    # The square at the edge is outside of the center crop.
    cases = {
        "moving": (moving_square(90, 200), set()),
        "frozen": ([moving_square(90, 200)[5]] * SCENE.frames, {SampleFlag.FROZEN_FRAMES}),
        "almost-black": (moving_square(0, 255), {SampleFlag.BLACK_FRAMES}),
        "edge-is-bright": (
            [moving_square(0, 255)[5] | moving_square(0, 255)[20]] * 25,
            {SampleFlag.FROZEN_FRAMES},
        ),
    }
    for name, (pixels, expected) in cases.items():
        path = tmp_path / f"{name}.mkv"
        write_av(path, SCENE, vcodec="ffv1", acodec="flac", pix_fmt="bgr0", pixels=pixels)
        config = build_config({"video": video, "quality": {"black_luma": 4.0}})
        assert {
            flag for flag in extract_features(clip(path), config).flags if "frames" in flag
        } == expected, name


def test_black_video_is_flagged_or_quarantined(tmp_path: Path) -> None:
    write_av(tmp_path / "a.flv", replace(SCENE, black=True, flashes=()))
    assert SampleFlag.BLACK_FRAMES in extract_features(clip(tmp_path / "a.flv"), Config()).flags
    assert quarantine_reason(clip(tmp_path / "a.flv"), black="quarantine") is QuarantineReason.BLACK_FRAMES


def test_silence_is_quarantined_or_flagged_by_its_level(tmp_path: Path) -> None:
    quiet = scene_audio(SCENE, 16_000) * np.float32(10 ** (-50 / 20) / 0.51)
    write_av(tmp_path / "a.flv", SCENE)
    write_wav(tmp_path / "a.wav", quiet, 16_000)
    source_clip = clip(tmp_path / "a.flv", tmp_path / "a.wav")
    assert extract_features(source_clip, Config()).flags == ()
    assert quarantine_reason(source_clip, silence_dbfs=-40) is QuarantineReason.SILENT_AUDIO
    flagging = build_config({"quality": {"silence_dbfs": -40, "silent": "flag"}})
    assert SampleFlag.SILENT_AUDIO in extract_features(source_clip, flagging).flags


def test_short_video_is_too_short_despite_long_audio(tmp_path: Path) -> None:
    write_av(tmp_path / "a.flv", replace(SCENE, seconds=0.04), samples=scene_audio(SCENE))
    assert quarantine_reason(clip(tmp_path / "a.flv"), min_seconds=0.5) is QuarantineReason.TOO_SHORT


def test_large_file_is_quarantined_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.flv").write_bytes(b"x" * 2000)
    assert quarantine_reason(clip(tmp_path / "a.flv"), max_bytes=1000) is QuarantineReason.TOO_LARGE


@pytest.mark.parametrize("is_separate", [True, False])
def test_channels_that_cancel_each_other_are_quarantined_or_one_is_used(
    tmp_path: Path, is_separate: bool
) -> None:
    wave = scene_audio(SCENE)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), SCENE.rate, subtype="PCM_16")
    write_av(tmp_path / "mono.mkv", SCENE, vcodec="libx264", acodec="flac")
    # The container's audio is that of the WAV.
    video, audio = ffmpeg.input(str(tmp_path / "mono.mkv"))["v"], ffmpeg.input(str(tmp_path / "a.wav"))["a"]
    ffmpeg.output(video, audio, str(tmp_path / "a.mkv"), vcodec="copy", acodec="flac").run(quiet=True)
    source_clip = clip(tmp_path / "a.mkv", tmp_path / "a.wav" if is_separate else None)
    assert quarantine_reason(source_clip) is QuarantineReason.PHASE_CANCELLED
    kept = extract_features(source_clip, build_config({"quality": {"silent": "flag"}}))
    assert {SampleFlag.PHASE_CANCELLED, SampleFlag.SILENT_AUDIO} <= set(kept.flags)
    expected = extract_features(clip(tmp_path / "mono.mkv"), Config())
    for channel in ("left", "right"):
        features = extract_features(source_clip, build_config({"audio": {"channel": channel}}))
        assert features.flags == ()
        assert np.abs(features.mel - expected.mel).mean() < 0.5


def test_low_frame_rate_is_flagged_below_the_limit(tmp_path: Path) -> None:
    for fps in (Fraction(8), NTSC):
        write_av(tmp_path / f"{fps.numerator}.mp4", replace(SCENE, fps=fps), vcodec="mpeg4", acodec="aac")
    flags = {
        limit: [
            SampleFlag.LOW_FRAME_RATE
            in extract_features(
                clip(tmp_path / f"{fps}.mp4"), build_config({"quality": {"min_fps": limit}})
            ).flags
            for fps in (8, NTSC.numerator)
        ]
        for limit in (0.0, 8.0, 10.0, 29.97, 30.0)
    }
    assert flags == {
        0.0: [False, False], 8.0: [False, False], 10.0: [True, False],
        29.97: [True, False], 30.0: [True, False],
    }  # fmt: skip


def test_clip_shorter_than_the_window_is_flagged_by_its_padding(tmp_path: Path) -> None:
    write_av(tmp_path / "a.mp4", SCENE, vcodec="mpeg4", acodec="aac")
    settings = {"align": {"seconds": 2.56}, "video": {"size": 16}}
    lost = 1 - SCENE.seconds / 2.56
    for limit, is_flagged in ((lost + 0.03, False), (lost - 0.03, True), (1.0, False)):
        config = build_config(settings, {"quality": {"max_padding": limit}})
        features = extract_features(clip(tmp_path / "a.mp4"), config)
        assert features.pad_fraction == pytest.approx(lost, abs=0.02)
        assert (SampleFlag.PADDED in features.flags) is is_flagged


def test_clip_without_audio_is_quarantined_or_kept_with_silence(tmp_path: Path) -> None:
    write_av(tmp_path / "a.mp4", SCENE, vcodec="mpeg4", acodec=None)
    assert quarantine_reason(clip(tmp_path / "a.mp4")) is QuarantineReason.NO_AUDIO_STREAM
    config = build_config({"quality": {"no_audio": "flag"}, "audio": {"flac": True}})
    features = extract_features(clip(tmp_path / "a.mp4"), config)
    assert features.flags == (SampleFlag.NO_AUDIO,)
    assert features.waveform is not None
    assert not features.waveform.any()
    assert np.all(features.mel == features.mel[0, 0, 0])
    assert (features.duration_audio, features.duration_video) == (0.0, SCENE.seconds)
