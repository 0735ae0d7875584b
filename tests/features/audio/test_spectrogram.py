from __future__ import annotations

import sys

import librosa
import numpy as np
import pytest

from avdata.config.presets import PRESETS
from avdata.config.schema import Config, build_config
from avdata.errors import AvdataError
from avdata.features.audio import compute_audio_feature
from avdata.features.audio.mel_filterbank import mel_filterbank
from avdata.features.audio.pcen import PCEN
from avdata.features.audio.spectrogram import mel_spectrogram
from avdata.testing.media import NTSC, Scene, scene_audio

EVENT_TIME = float(30 / NTSC)
SCENE = Scene(seconds=2.5, beeps=(EVENT_TIME,), seed=2)


@pytest.mark.parametrize(
    ("n_fft", "hop", "n_mels", "power"), [(1024, 80, 128, 2.0), (2048, 320, 64, 1.0), (512, 125, 40, 2.0)]
)
def test_mel_spectrogram_equals_librosa(n_fft: int, hop: int, n_mels: int, power: float) -> None:
    audio = build_config(
        {"audio": {"n_fft": n_fft, "hop_length": hop, "n_mels": n_mels, "power": power, "layout": "repeat"}}
    ).audio
    wave = scene_audio(SCENE, 16_000)
    values = mel_spectrogram(wave, audio)
    expected = librosa.feature.melspectrogram(
        y=wave, sr=16_000, n_fft=n_fft, hop_length=hop, n_mels=n_mels, power=power, pad_mode="constant"
    )
    assert values.shape == expected.shape
    assert np.abs(values - expected).max() <= 1e-5 * expected.max()


def test_decibels_equal_librosa() -> None:
    config = build_config(
        {"audio": {"ref": "max", "top_db": 80.0, "layout": "repeat"}, "video": {"num_frames": 1}}
    )
    wave = scene_audio(SCENE, 16_000)[: 16_000 * 64 // 25]
    expected = librosa.power_to_db(
        librosa.feature.melspectrogram(y=wave, sr=16_000, n_fft=1024, hop_length=80, n_mels=128), ref=np.max
    )
    assert np.abs(compute_audio_feature(wave, config)[0] - expected).max() < 1e-3


def test_log_stft_equals_log_of_librosa_stft() -> None:
    config = build_config(PRESETS["ogmge"])
    wave = np.tile(scene_audio(Scene(seconds=1.5, beeps=(0.2,)), 22_050), 3)[:66_150]
    expected = np.log(np.abs(librosa.stft(np.clip(wave, -1, 1), n_fft=512, hop_length=353)) + 1e-7)
    assert np.abs(compute_audio_feature(wave, config)[0] - expected).max() < 2e-2
    assert np.abs(np.exp(compute_audio_feature(wave, config)[0]) - np.exp(expected)).max() < 1e-4


def test_pcen_equals_librosa() -> None:
    config = build_config({"audio": {"feature": "pcen", "power": 1.0}})
    wave = np.r_[scene_audio(SCENE, 16_000), np.zeros(960, np.float32)]
    energy = librosa.feature.melspectrogram(
        y=wave, sr=16_000, n_fft=1024, hop_length=80, n_mels=128, power=1.0, pad_mode="constant"
    )
    expected = librosa.pcen(energy.astype(np.float64) * 2.0**31, sr=16_000, hop_length=80)
    values = PCEN().compute(wave, config.audio)
    assert values.dtype == np.float32
    assert np.abs(values - expected).max() <= 1e-4 * expected.max()
    stored = compute_audio_feature(wave, config)
    assert stored.shape == (4, 128, 128)
    assert np.allclose(stored[0], expected[:, :128], atol=1e-4 * expected.max())


def test_pcen_is_computed_by_librosa(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config({"audio": {"feature": "pcen"}}).audio
    wave = scene_audio(SCENE, 16_000)
    values, filterbank, pcen = PCEN().compute(wave, config), mel_filterbank(config), librosa.pcen
    monkeypatch.setattr(librosa, "pcen", lambda *args, **options: 2 * pcen(*args, **options))
    assert np.array_equal(PCEN().compute(wave, config), 2 * values)
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(AvdataError, match="librosa cannot be imported"):
        PCEN().compute(wave, config, filterbank)


def test_steps_are_consecutive_columns_of_the_spectrogram() -> None:
    config = Config()
    wave = np.zeros(round(2.56 * 16_000), np.float32)
    # An impulse in the middle of column 300 must appear in step 2, column 300 - 2 · 128.
    wave[300 * 80] = 1.0
    mel = compute_audio_feature(wave, config)
    assert mel.shape == (4, 128, 128)
    step, column = np.unravel_index(mel.sum(axis=1).argmax(), (4, 128))
    assert (step, column) == (2, 300 - 256)


def test_overlapping_segments_share_columns() -> None:
    wave = scene_audio(SCENE, 16_000)
    overlapping = build_config({"align": {"window": "segments", "seconds": 0.64, "hop": 0.32}})
    complete = mel_spectrogram(wave[:25_600], overlapping.audio)
    mel = compute_audio_feature(wave[:25_600], overlapping)
    assert mel.shape == (4, 128, 128)
    for step in range(4):
        expected = 10 * np.log10(np.maximum(complete[:, step * 64 : step * 64 + 128], 1e-10))
        assert np.allclose(mel[step], expected, atol=1e-4)
