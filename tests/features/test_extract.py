from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile
import torch
from av.video.reformatter import Colorspace, VideoReformatter
from torchvision.transforms.v2 import functional as transform

from avdata.config.presets import PRESETS
from avdata.config.schema import Config, build_config
from avdata.errors import MediaError, QuarantineReason
from avdata.features.alignment import Window, slice_audio
from avdata.features.audio.spectrogram import compute_audio_feature, pcen, spectrogram
from avdata.features.extract import extract_features
from avdata.media.resize import resize_frame, resize_image
from avdata.pipeline.output_dir import LocalOutput
from avdata.pipeline.shard_job import ShardJob, _steps
from avdata.pipeline.validation import SourceFile, ValidClip
from avdata.recipe import Clip
from avdata.shards.reader import decode_frames
from avdata.shards.writer import encode_members
from avdata.streaming.collate import BatchAssembler, SampleShape
from avdata.testing.media import NTSC, Scene, scene_audio, write_av, write_image, write_wav

MOMENT = float(30 / NTSC)
SCENE = Scene(seconds=2.5, flashes=(MOMENT,), beeps=(MOMENT,), size=(160, 120), seed=2)


def clip(video: Path, audio: Path | None = None, **options: object) -> Clip:
    return Clip(key="k", label="a", group="g", split="train", video=video, audio=audio, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_fft", "hop", "n_mels", "power"), [(1024, 80, 128, 2.0), (2048, 320, 64, 1.0), (512, 125, 40, 2.0)]
)
def test_the_mel_is_librosas(n_fft: int, hop: int, n_mels: int, power: float) -> None:
    audio = build_config(
        {"audio": {"n_fft": n_fft, "hop_length": hop, "n_mels": n_mels, "power": power, "layout": "repeat"}}
    ).audio
    wave = scene_audio(SCENE, 16_000)
    ours = spectrogram(wave, audio)
    theirs = librosa.feature.melspectrogram(
        y=wave, sr=16_000, n_fft=n_fft, hop_length=hop, n_mels=n_mels, power=power, pad_mode="constant"
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * theirs.max()


def test_decibels_are_librosas() -> None:
    config = build_config(
        {"audio": {"ref": "max", "top_db": 80.0, "layout": "repeat"}, "video": {"num_frames": 1}}
    )
    wave = scene_audio(SCENE, 16_000)[: 16_000 * 64 // 25]
    theirs = librosa.power_to_db(
        librosa.feature.melspectrogram(y=wave, sr=16_000, n_fft=1024, hop_length=80, n_mels=128), ref=np.max
    )
    assert np.abs(compute_audio_feature(wave, config)[0] - theirs).max() < 1e-3


def test_the_steps_of_a_mel_are_the_picture_cut_in_pieces() -> None:
    config = Config()
    wave = np.zeros(round(2.56 * 16_000), np.float32)
    # An impulse in the middle of column 300 must come up in step 2, column 300 - 2 · 128.
    wave[300 * 80] = 1.0
    mel = compute_audio_feature(wave, config)
    assert mel.shape == (4, 128, 128)
    step, column = np.unravel_index(mel.sum(axis=1).argmax(), (4, 128))
    assert (step, column) == (2, 300 - 256)


def onsets(features_of: Clip, config: Config) -> tuple[float, float]:
    """When the beep sets in in the mel, and when the flash comes on screen, in seconds on the clip's axis."""
    got = extract_features(features_of, config)
    mel = np.concatenate(list(got.mel.astype(np.float32)), axis=1)
    band = mel[40:60].max(axis=0)
    # Half of the window's amplitude, 6 dB below the top, is reached when its center is on the onset.
    column = int(np.argmax(band > band.max() - 6.02))
    white = got.frames.mean(axis=(1, 2, 3)) > 190
    return got.window[0] + column * config.audio.hop_length / config.audio.sample_rate, got.frame_times[
        int(np.argmax(white))
    ]


@pytest.mark.parametrize("kind", ["flv", "mp4", "pair", "late"])
def test_the_beep_in_the_mel_is_with_the_flash_in_the_frames(tmp_path: Path, kind: str) -> None:
    # 128 steps of 20 ms, so that every frame is at some step's middle.
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
def test_the_offset_of_a_wav_is_measured_on_the_containers_axis(tmp_path: Path, shift: float) -> None:
    wave = scene_audio(SCENE, 16_000)
    write_av(tmp_path / "a.mp4", SCENE, vcodec="libx264", acodec="aac")
    moved = (
        wave[round(shift * 16_000) :]
        if shift >= 0
        else np.r_[np.zeros(round(-shift * 16_000), np.float32), wave]
    )
    write_wav(tmp_path / "a.wav", moved, 16_000)
    got = extract_features(clip(tmp_path / "a.mp4", tmp_path / "a.wav"), Config())
    assert got.av_offset == pytest.approx(shift, abs=0.001)
    assert got.av_peak is not None
    assert got.av_peak > 0.9


def test_a_wav_of_something_else_is_flagged(tmp_path: Path) -> None:
    write_av(tmp_path / "a.flv", SCENE)
    write_wav(
        tmp_path / "a.wav", np.random.default_rng(0).normal(size=40_000).astype(np.float32) * 0.1, 16_000
    )
    got = extract_features(clip(tmp_path / "a.flv", tmp_path / "a.wav"), Config())
    assert "low_correlation" in got.flags


def test_the_frame_of_a_step_is_on_screen_at_its_middle(tmp_path: Path) -> None:
    write_av(tmp_path / "a.mkv", SCENE, vcodec="ffv1", acodec="flac", pix_fmt="bgr0")
    got = extract_features(clip(tmp_path / "a.mkv"), Config())
    for middle, shown in zip(np.arange(4) * 0.64 + 0.32, got.frame_times, strict=True):
        assert 0 <= middle - shown < 1 / float(NTSC) + 0.001


def test_a_still_stands_for_all_steps(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", np.full((50, 70, 3), 90, np.uint8))
    write_wav(tmp_path / "a.wav", scene_audio(SCENE, 16_000), 16_000)
    got = extract_features(clip(tmp_path / "a.jpg", tmp_path / "a.wav", is_image=True), Config())
    assert got.flags == ("frames_are_static",)
    assert got.duration_video is None
    assert all(np.array_equal(frame, got.frames[0]) for frame in got.frames)


@pytest.mark.parametrize(
    ("preset", "mel", "frames"),
    [
        ("snnergy", (4, 128, 128), (4, 128, 128, 3)),
        ("snnergy-repeat", (4, 128, 128), (4, 128, 128, 3)),
        ("ogmge", (3, 257, 188), (3, 224, 224, 3)),
        ("scmrl", (4, 128, 128), (4, 128, 128, 3)),
    ],
)
def test_presets_have_the_published_shapes(
    tmp_path: Path, preset: str, mel: tuple[int, ...], frames: tuple[int, ...]
) -> None:
    write_av(tmp_path / "a.flv", SCENE)
    got = extract_features(clip(tmp_path / "a.flv"), build_config(PRESETS[preset]))
    assert got.mel.shape == mel
    assert got.frames.shape == frames
    if preset == "snnergy-repeat":
        assert (float(got.mel.min()), float(got.mel.max())) == (0.0, 1.0)
        assert np.array_equal(got.mel[0], got.mel[3])
    if preset == "ogmge":
        start = float(got.frame_times[0])
        assert np.allclose(
            np.array(got.frame_times) - start, [0, 29 / float(NTSC), 58 / float(NTSC)], atol=0.002
        )


def test_ogmge_is_the_log_of_librosas_stft(tmp_path: Path) -> None:
    config = build_config(PRESETS["ogmge"])
    wave = np.tile(scene_audio(Scene(seconds=1.5, beeps=(0.2,)), 22_050), 3)[:66_150]
    theirs = np.log(np.abs(librosa.stft(np.clip(wave, -1, 1), n_fft=512, hop_length=353)) + 1e-7)
    assert np.abs(compute_audio_feature(wave, config)[0] - theirs).max() < 2e-2
    assert np.abs(np.exp(compute_audio_feature(wave, config)[0]) - np.exp(theirs)).max() < 1e-4


def test_silence_darkness_and_shortness_have_their_reasons(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
def test_a_picture_is_fitted_as_torchvision_does(fit: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    got = resize_image(pixels, build_config({"video": {"size": 48, "resize_mode": fit}}).video)
    assert got.shape == (48, 48, 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if fit == "letterbox":
        theirs = transform.pad(transform.resize(image, [36, 48], antialias=True), [0, 6])
    elif fit == "stretch":
        theirs = transform.resize(image, [48, 48], antialias=True)
    else:
        theirs = transform.center_crop(transform.resize(image, [48, 64], antialias=True), [48, 48])
    apart = np.abs(got.astype(int) - theirs.permute(1, 2, 0).numpy())
    assert apart.max() <= 1
    assert apart.mean() < 0.02
    if fit == "letterbox":
        assert got[:6].max() == 0
        assert got[-6:].max() == 0
        assert got[6:42].min(axis=(1, 2)).max() > 0


def _graded(height: int, width: int, seed: int) -> np.ndarray:
    """A picture in YUV 4:2:0 as ffmpeg lays it out: grain over a slope, and colors that change slowly."""
    dice = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width]
    luma = 40 + 150 * across / width + dice.integers(0, 40, (height, width))
    half = down[::2, ::2] / height, across[::2, ::2] / width
    blue, red = 100 + 50 * half[0], 150 - 40 * half[1]
    return np.concatenate([np.rint(plane).astype(np.uint8).ravel() for plane in (luma, blue, red)])


def _as_rgb(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """BT.601's own formula in floating point, [H, W, 3]."""
    luma, blue, red = np.split(planes.astype(np.float64), np.cumsum([height * width, height * width // 4]))
    wide = [np.kron(plane.reshape(height // 2, -1), np.ones((2, 2))) - 128 for plane in (blue, red)]
    bright = (luma.reshape(height, width) - 16) * 255 / 219
    blue, red = (plane * 255 / 224 for plane in wide)
    green = bright - 0.114 * 1.772 / 0.587 * blue - 0.299 * 1.402 / 0.587 * red
    return np.stack([bright + 1.402 * red, green, bright + 1.772 * blue], -1).clip(0, 255)


@pytest.mark.parametrize("shape", [(360, 480), (90, 120), (720, 480)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
def test_a_frame_is_fitted_as_torchvision_fits_its_exact_colours(fit: str, shape: tuple[int, int]) -> None:
    planes = _graded(*shape, seed=1)
    frame = av.VideoFrame.from_ndarray(planes.reshape(shape[0] * 3 // 2, shape[1]), format="yuv420p")
    frame.colorspace = int(Colorspace.ITU601)
    got = resize_frame(
        frame, build_config({"video": {"size": 48, "resize_mode": fit}}).video, VideoReformatter()
    )
    image = torch.from_numpy(_as_rgb(planes, *shape)).permute(2, 0, 1)
    short, long = min(shape), max(shape)
    if fit == "stretch":
        theirs = transform.resize(image, [48, 48], antialias=True)
    elif fit == "crop":
        theirs = transform.center_crop(transform.resize(image, [48], antialias=True), [48, 48])
    else:
        part = round(short * 48 / long)
        size = [part, 48] if shape[0] == short else [48, part]
        margin = [0, (48 - part) // 2] if shape[0] == short else [(48 - part) // 2, 0]
        theirs = transform.pad(transform.resize(image, size, antialias=True), margin)
    apart = got - theirs.permute(1, 2, 0).numpy()
    assert np.abs(apart).mean() < 0.5
    assert np.abs(apart.mean(axis=(0, 1))).max() < 0.15


def test_a_frame_that_grows_or_shrinks_beyond_swscale_is_fitted_as_well() -> None:
    video = build_config({"video": {"size": 48}}).video
    for shape in ((24, 32), (48, 48), (64, 4096), (1600, 1600)):
        frame = av.VideoFrame.from_ndarray(np.full((*shape, 3), 200, np.uint8), format="rgb24")
        got = resize_frame(frame, video, VideoReformatter())
        assert got.shape == (48, 48, 3)
        assert np.abs(got.astype(int) - 200).max() <= 1


def test_odd_sizes_and_grey_work(tmp_path: Path) -> None:
    write_av(
        tmp_path / "a.mkv",
        Scene(seconds=1.0, size=(53, 31), beeps=(0.5,), fps=Fraction(15)),
        vcodec="ffv1",
        acodec="flac",
        pix_fmt="bgr0",
    )
    got = extract_features(clip(tmp_path / "a.mkv"), build_config({"video": {"color": "gray", "size": 16}}))
    assert got.frames.shape == (4, 16, 16, 1)


def test_pcen_is_librosas() -> None:
    audio = build_config({"audio": {"power": 1.0}}).audio
    wave = np.r_[scene_audio(SCENE, 16_000), np.zeros(960, np.float32)]
    energy = spectrogram(wave, audio)
    theirs = librosa.pcen(energy.astype(np.float64) * 2.0**31, sr=16_000, hop_length=80)
    assert np.abs(pcen(energy, 16_000 / 80) - theirs).max() <= 1e-5 * theirs.max()
    stored = compute_audio_feature(wave, build_config({"audio": {"log": "pcen", "power": 1.0}}))
    assert stored.shape == (4, 128, 128)
    assert np.allclose(stored[0], theirs[:, :128], atol=1e-4 * theirs.max())


def test_overlapping_segments_share_their_columns() -> None:
    wave = scene_audio(SCENE, 16_000)
    apart = build_config({"align": {"window": "segments", "seconds": 0.64, "hop": 0.32}})
    whole = spectrogram(wave[:25_600], apart.audio)
    mel = compute_audio_feature(wave[:25_600], apart)
    assert mel.shape == (4, 128, 128)
    for step in range(4):
        expected = 10 * np.log10(np.maximum(whole[:, step * 64 : step * 64 + 128], 1e-10))
        assert np.allclose(mel[step], expected, atol=1e-4)


def test_segments_show_the_frame_at_each_middle_and_the_label_of_each_second(tmp_path: Path) -> None:
    scene = Scene(seconds=4.0, flashes=(2.45,), beeps=(2.45,), size=(64, 48), fps=Fraction(20))
    write_av(tmp_path / "a.mp4", scene, vcodec="libx264", acodec="aac")
    config = build_config({"align": {"window": "segments", "seconds": 1.0}, "audio": {"hop_length": 125}})
    got = extract_features(clip(tmp_path / "a.mp4"), config)
    assert [round(float(frame.mean())) > 200 for frame in got.frames] == [False, False, True, False]
    assert got.frame_times == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.051)
    candidate = ValidClip(clip(tmp_path / "a.mp4", event=(2.0, 3.0)), SourceFile("a.mp4", "", 0), None)
    job = ShardJob(LocalOutput(tmp_path), "train/x.tar", (candidate,), config, ("a",), "background")
    assert _steps(job, candidate, got)["step_labels"] == [1, 1, 0, 1]


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("storage", ["png", "npy"])
def test_exact_storage_gives_back_the_frames_it_was_given(tmp_path: Path, storage: str, color: str) -> None:
    write_av(tmp_path / "a.flv", SCENE)
    config = build_config(
        {"video": {"storage": storage, "color": color, "size": 32}, "audio": {"flac": True}}
    )
    got = extract_features(clip(tmp_path / "a.flv"), config)
    members = {name: memoryview(data) for name, data in encode_members(got, 0, {}, config).items()}
    assert np.array_equal(decode_frames(members, 4), got.frames)
    shape, strip = SampleShape(got.mel.shape, got.frames.shape), storage == "png"
    filled, copies = torch.empty(shape.layout(strip=strip), dtype=torch.uint8), BatchAssembler()
    copies.frames(members, shape, filled, strip=strip)
    copies.flush()
    batch = shape.tensor(filled[None], strip=strip).numpy()
    assert np.array_equal(batch[0], got.frames.transpose(0, 3, 1, 2))
    wave, rate = soundfile.read(io.BytesIO(members["flac"]), dtype="float32")
    assert got.waveform is not None
    assert rate == 16_000
    assert np.abs(wave - got.waveform).max() <= 1 / 32_768


@pytest.mark.parametrize(("correct", "start"), [("measured", 0.03), ("container", 0.0), ("none", 0.0)])
def test_a_separate_sound_stands_where_the_config_wants_it(
    tmp_path: Path, correct: str, start: float
) -> None:
    write_av(tmp_path / "a.mp4", SCENE, vcodec="libx264", acodec="aac")
    write_wav(tmp_path / "a.wav", scene_audio(SCENE, 16_000)[480:], 16_000)
    got = extract_features(
        clip(tmp_path / "a.mp4", tmp_path / "a.wav"), build_config({"align": {"offset_correction": correct}})
    )
    wave = slice_audio(scene_audio(SCENE, 16_000)[480:], 16_000, start, Window(*got.window), "zeros")
    difference = got.mel.astype(np.float32) - compute_audio_feature(wave, Config())
    # A fraction of a sample remains.
    assert np.abs(difference).mean() < 0.5
    assert (got.av_offset is None) == (correct == "none")


def test_the_flags_of_two_streams_that_do_not_fit_are_set(tmp_path: Path) -> None:
    write_av(tmp_path / "a.mp4", SCENE, vcodec="libx264", acodec="aac")
    write_wav(tmp_path / "a.wav", scene_audio(SCENE, 16_000)[:28_000], 16_000)
    got = extract_features(clip(tmp_path / "a.mp4", tmp_path / "a.wav"), Config())
    assert {"av_mismatch", "audio_truncated"} <= set(got.flags)
    assert got.pad_fraction > 0.2
