from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from avdata.config.presets import PRESETS
from avdata.config.schema import Config, build_config
from avdata.errors import MediaError, QuarantineReason
from avdata.features.alignment import Window, slice_audio
from avdata.features.audio import compute_audio_feature
from avdata.features.extract import extract_features
from avdata.pipeline.output_dir import LocalOutput
from avdata.pipeline.shard_job import ShardJob, _steps
from avdata.pipeline.validation import SourceFile, ValidClip
from avdata.recipe import Clip
from avdata.shards.members import decode_frames
from avdata.shards.writer import encode_members
from avdata.streaming.collate import BatchAssembler, SampleShape
from avdata.testing.media import NTSC, Scene, scene_audio, write_av, write_image, write_wav

EVENT_TIME = float(30 / NTSC)
SCENE = Scene(seconds=2.5, flashes=(EVENT_TIME,), beeps=(EVENT_TIME,), size=(160, 120), seed=2)


def clip(video: Path, audio: Path | None = None, **options: object) -> Clip:
    return Clip(key="k", label="a", group="g", split="train", video=video, audio=audio, **options)  # type: ignore[arg-type]


def onsets(features_of: Clip, config: Config) -> tuple[float, float]:
    """Return the onset of the beep in the mel and the time of the flash, s on the clip's axis."""
    features = extract_features(features_of, config)
    mel = np.concatenate(list(features.mel.astype(np.float32)), axis=1)
    band = mel[40:60].max(axis=0)
    # At the onset, half of the STFT window covers the beep: half the amplitude, 6 dB below the maximum.
    column = int(np.argmax(band > band.max() - 6.02))
    white = features.frames.mean(axis=(1, 2, 3)) > 190
    beep = features.window[0] + column * config.audio.hop_length / config.audio.sample_rate
    return beep, features.frame_times[int(np.argmax(white))]


@pytest.mark.parametrize("kind", ["flv", "mp4", "pair", "late"])
def test_beep_in_the_mel_coincides_with_flash_in_the_frames(tmp_path: Path, kind: str) -> None:
    # 128 steps of 20 ms, so that every frame is at the middle of a step.
    config = build_config({"video": {"num_frames": 128, "size": 16}, "audio": {"n_fft": 512}})
    video = tmp_path / ("clip.flv" if kind in {"flv", "pair"} else "clip.mp4")
    codecs = {} if video.suffix == ".flv" else {"vcodec": "libx264", "acodec": "aac"}
    late = 0.4 if kind == "late" else 0.0
    write_av(video, SCENE, audio_start=late, **codecs)  # type: ignore[arg-type]
    audio = None
    if kind == "pair":
        audio = tmp_path / "clip.wav"
        write_wav(audio, scene_audio(SCENE, 16_000), 16_000)
    beep, flash = onsets(clip(video, audio), config)
    half_a_frame = 0.5 / float(NTSC)
    assert abs(beep - flash - late) <= max(half_a_frame, config.audio.hop_length / 16_000)


@pytest.mark.parametrize("shift", [-0.2, 0.0, 0.03, 0.2])
def test_extract_measures_wav_offset_on_the_container_axis(tmp_path: Path, shift: float) -> None:
    wave = scene_audio(SCENE, 16_000)
    write_av(tmp_path / "a.mp4", SCENE, vcodec="libx264", acodec="aac")
    moved = (
        wave[round(shift * 16_000) :]
        if shift >= 0
        else np.r_[np.zeros(round(-shift * 16_000), np.float32), wave]
    )
    write_wav(tmp_path / "a.wav", moved, 16_000)
    features = extract_features(clip(tmp_path / "a.mp4", tmp_path / "a.wav"), Config())
    assert features.av_offset == pytest.approx(shift, abs=0.001)
    assert features.av_peak is not None
    assert features.av_peak > 0.9


def test_extract_flags_an_unrelated_wav(tmp_path: Path) -> None:
    write_av(tmp_path / "a.flv", SCENE)
    write_wav(
        tmp_path / "a.wav", np.random.default_rng(0).normal(size=40_000).astype(np.float32) * 0.1, 16_000
    )
    features = extract_features(clip(tmp_path / "a.flv", tmp_path / "a.wav"), Config())
    assert "low_correlation" in features.flags


def test_frame_of_a_step_is_on_screen_at_its_middle(tmp_path: Path) -> None:
    write_av(tmp_path / "a.mkv", SCENE, vcodec="ffv1", acodec="flac", pix_fmt="bgr0")
    features = extract_features(clip(tmp_path / "a.mkv"), Config())
    for middle, time in zip(np.arange(4) * 0.64 + 0.32, features.frame_times, strict=True):
        assert 0 <= middle - time < 1 / float(NTSC) + 0.001


def test_waveform_span_is_the_part_of_the_waveform_that_the_audio_covers(tmp_path: Path) -> None:
    wave = scene_audio(SCENE, 16_000)
    write_av(tmp_path / "a.mp4", SCENE, vcodec="libx264", acodec="aac")
    write_wav(tmp_path / "a.wav", wave[800:-800], 16_000)
    config = build_config({"audio": {"flac": True}, "align": {"seconds": 4.0}})
    features = extract_features(clip(tmp_path / "a.mp4", tmp_path / "a.wav"), config)
    assert features.waveform is not None
    assert features.waveform_span is not None
    first, last = features.waveform_span
    assert first == pytest.approx(800, abs=40)
    assert last - first == len(wave) - 1600
    assert np.allclose(features.waveform[first:last], wave[800:-800], atol=1e-4)
    assert not features.waveform[last:].any()
    assert extract_features(clip(tmp_path / "a.mp4"), Config()).waveform_span is None


def test_image_is_repeated_for_all_steps(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", np.full((50, 70, 3), 90, np.uint8))
    write_wav(tmp_path / "a.wav", scene_audio(SCENE, 16_000), 16_000)
    features = extract_features(clip(tmp_path / "a.jpg", tmp_path / "a.wav", is_image=True), Config())
    assert features.flags == ("frames_are_static",)
    assert features.duration_video is None
    assert all(np.array_equal(frame, features.frames[0]) for frame in features.frames)


@pytest.mark.parametrize(
    ("preset", "mel", "frames"),
    [
        ("snnergy", (4, 128, 128), (4, 128, 128, 3)),
        ("snnergy-repeat", (4, 128, 128), (4, 128, 128, 3)),
        ("ogmge", (3, 257, 188), (3, 224, 224, 3)),
        ("scmrl", (4, 128, 128), (4, 128, 128, 3)),
        ("ogmge-1fps", (6, 128, 100), (6, 256, 256, 3)),
        ("balancemm", (12, 128, 50), (12, 256, 256, 3)),
    ],
)
def test_presets_give_the_published_shapes(
    tmp_path: Path, preset: str, mel: tuple[int, ...], frames: tuple[int, ...]
) -> None:
    write_av(tmp_path / "a.flv", SCENE)
    features = extract_features(clip(tmp_path / "a.flv"), build_config(PRESETS[preset]))
    assert features.mel.shape == mel
    assert features.frames.shape == frames
    if preset == "snnergy-repeat":
        assert (float(features.mel.min()), float(features.mel.max())) == (0.0, 1.0)
        assert np.array_equal(features.mel[0], features.mel[3])
    if preset == "ogmge":
        start = float(features.frame_times[0])
        assert np.allclose(
            np.array(features.frame_times) - start, [0, 29 / float(NTSC), 58 / float(NTSC)], atol=0.002
        )


def test_silent_black_and_short_clips_have_their_reasons(tmp_path: Path) -> None:
    write_av(tmp_path / "silent.flv", Scene(seconds=1.0, size=(64, 48), silent=True))
    with pytest.raises(MediaError) as caught:
        extract_features(clip(tmp_path / "silent.flv"), Config())
    assert caught.value.reason is QuarantineReason.SILENT_AUDIO
    write_av(tmp_path / "black.flv", Scene(seconds=1.0, size=(64, 48), black=True, beeps=(0.5,)))
    assert "black_frames" in extract_features(clip(tmp_path / "black.flv"), Config()).flags
    strict = build_config({"quality": {"black": "quarantine"}})
    with pytest.raises(MediaError, match="black_frames"):
        extract_features(clip(tmp_path / "black.flv"), strict)
    with pytest.raises(MediaError, match="too_short"):
        extract_features(clip(tmp_path / "black.flv"), build_config({"quality": {"min_seconds": 5.0}}))


def test_extract_handles_odd_sizes_and_gray(tmp_path: Path) -> None:
    write_av(
        tmp_path / "a.mkv",
        Scene(seconds=1.0, size=(53, 31), beeps=(0.5,), fps=Fraction(15)),
        vcodec="ffv1",
        acodec="flac",
        pix_fmt="bgr0",
    )
    features = extract_features(
        clip(tmp_path / "a.mkv"), build_config({"video": {"color": "gray", "size": 16}})
    )
    assert features.frames.shape == (4, 16, 16, 1)


def test_segments_have_the_frame_at_each_middle_and_a_label_each(tmp_path: Path) -> None:
    scene = Scene(seconds=4.0, flashes=(2.45,), beeps=(2.45,), size=(64, 48), fps=Fraction(20))
    write_av(tmp_path / "a.mp4", scene, vcodec="libx264", acodec="aac")
    config = build_config({"align": {"window": "segments", "seconds": 1.0}, "audio": {"hop_length": 125}})
    features = extract_features(clip(tmp_path / "a.mp4"), config)
    assert [round(float(frame.mean())) > 200 for frame in features.frames] == [False, False, True, False]
    assert features.frame_times == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.051)
    candidate = ValidClip(clip(tmp_path / "a.mp4", event=(2.0, 3.0)), SourceFile("a.mp4", "", 0), None)
    job = ShardJob(LocalOutput(tmp_path), "train/x.tar", (candidate,), config, ("a",), "background")
    assert _steps(job, candidate, features)["step_labels"] == [1, 1, 0, 1]


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("storage", ["png", "npy"])
def test_lossless_storage_returns_identical_frames(tmp_path: Path, storage: str, color: str) -> None:
    write_av(tmp_path / "a.flv", SCENE)
    config = build_config(
        {"video": {"storage": storage, "color": color, "size": 32}, "audio": {"flac": True}}
    )
    features = extract_features(clip(tmp_path / "a.flv"), config)
    members = {name: memoryview(data) for name, data in encode_members(features, 0, {}, config).items()}
    assert np.array_equal(decode_frames(members, features.frames.shape), features.frames)
    shape, strip = SampleShape(features.mel.shape, features.frames.shape), storage == "png"
    filled, copies = torch.empty(shape.layout(strip=strip), dtype=torch.uint8), BatchAssembler()
    copies.frames(members, shape, filled, strip=strip)
    copies.flush()
    batch = shape.tensor(filled[None], strip=strip).numpy()
    assert np.array_equal(batch[0], features.frames.transpose(0, 3, 1, 2))
    wave, rate = soundfile.read(io.BytesIO(members["flac"]), dtype="float32")
    assert features.waveform is not None
    assert rate == 16_000
    assert np.abs(wave - features.waveform).max() <= 1 / 32_768


@pytest.mark.parametrize(("correct", "start"), [("measured", 0.03), ("container", 0.0), ("none", 0.0)])
def test_separate_audio_is_placed_by_offset_correction(tmp_path: Path, correct: str, start: float) -> None:
    write_av(tmp_path / "a.mp4", SCENE, vcodec="libx264", acodec="aac")
    write_wav(tmp_path / "a.wav", scene_audio(SCENE, 16_000)[480:], 16_000)
    features = extract_features(
        clip(tmp_path / "a.mp4", tmp_path / "a.wav"), build_config({"align": {"offset_correction": correct}})
    )
    wave = slice_audio(scene_audio(SCENE, 16_000)[480:], 16_000, start, Window(*features.window), "zeros")
    difference = features.mel.astype(np.float32) - compute_audio_feature(wave, Config())
    # The estimated offset differs by a fraction of a sample.
    assert np.abs(difference).mean() < 0.5
    assert (features.av_offset is None) == (correct == "none")


def test_extract_flags_streams_of_different_length(tmp_path: Path) -> None:
    write_av(tmp_path / "a.mp4", SCENE, vcodec="libx264", acodec="aac")
    write_wav(tmp_path / "a.wav", scene_audio(SCENE, 16_000)[:28_000], 16_000)
    features = extract_features(clip(tmp_path / "a.mp4", tmp_path / "a.wav"), Config())
    assert {"av_mismatch", "audio_truncated"} <= set(features.flags)
    assert features.pad_fraction > 0.2
