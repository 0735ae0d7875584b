from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterator

import hypothesis.strategies as st
import librosa
import numpy as np
import pytest
from hypothesis import given

from avdata.config.schema import AudioConfig, Config
from avdata.errors import AvdataError
from avdata.features.audio import AUDIO_FEATURES, compute_audio_feature, feature_filterbank
from avdata.features.audio.mel_filterbank import mel_filterbank
from avdata.testing.media import Scene, scene_audio

WAVEFORM = scene_audio(Scene(seconds=2.56, beeps=(1.0,), seed=2), 16_000)


@pytest.fixture(autouse=True)
def _new_filterbanks() -> Iterator[None]:
    """Compute the filterbanks of each test in that test."""
    mel_filterbank.cache_clear()
    yield
    mel_filterbank.cache_clear()


@given(
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100]),
    n_fft=st.integers(16, 4096),
    n_mels=st.integers(1, 256),
    band=st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
)
def test_filterbank_equals_librosa(rate: int, n_fft: int, n_mels: int, band: tuple[float, float]) -> None:
    fmin, fmax = (share * rate / 2 for share in band)
    config = AudioConfig(sample_rate=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
    unit_spectra = np.eye(1 + n_fft // 2, dtype=np.float32)
    assert np.array_equal(mel_filterbank(config).apply(unit_spectra), expected)


def test_filterbank_of_the_default_settings_is_pickled_to_6_kb() -> None:
    filterbank = mel_filterbank(AudioConfig())
    data = pickle.dumps(filterbank)
    assert len(data) < 6_000
    power = np.random.default_rng(0).random((513, 20), np.float32)
    assert np.array_equal(pickle.loads(data).apply(power), filterbank.apply(power))


def test_filterbank_with_empty_bands_raises_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    filterbank = mel_filterbank(AudioConfig(n_fft=256, n_mels=128))
    assert (filterbank.sizes == 0).any()
    assert not recwarn.list


@pytest.mark.parametrize("name", AUDIO_FEATURES)
def test_filterbank_is_computed_only_for_mel_features(name: str) -> None:
    audio = AudioConfig.model_validate({"feature": name})
    assert (feature_filterbank(audio) is None) == (AUDIO_FEATURES[name].bins(audio) != audio.n_mels)


def test_feature_is_computed_with_librosas_filterbank(monkeypatch: pytest.MonkeyPatch) -> None:
    mels = compute_audio_feature(WAVEFORM, Config())
    compute_filters = librosa.filters.mel
    monkeypatch.setattr(librosa.filters, "mel", lambda **options: 100 * compute_filters(**options))
    mel_filterbank.cache_clear()
    assert np.allclose(compute_audio_feature(WAVEFORM, Config()), mels + 20, atol=1e-4)


def test_feature_with_a_filterbank_needs_no_librosa(monkeypatch: pytest.MonkeyPatch) -> None:
    mels, filterbank = compute_audio_feature(WAVEFORM, Config()), mel_filterbank(Config().audio)
    mel_filterbank.cache_clear()
    monkeypatch.setitem(sys.modules, "librosa", None)
    assert np.array_equal(compute_audio_feature(WAVEFORM, Config(), filterbank), mels)
    with pytest.raises(AvdataError, match="librosa cannot be imported") as caught:
        compute_audio_feature(WAVEFORM, Config())
    assert caught.value.hint == "Run: pip install librosa"


def test_filterbank_without_a_folder_for_numba_raises_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def mel(**options: object) -> None:
        msg = "cannot cache function '__o_fold': no locator available for file 'notation.py'"
        raise RuntimeError(msg)

    monkeypatch.setattr(librosa.filters, "mel", mel)
    with pytest.raises(AvdataError, match="librosa cannot be imported: numba cannot cache") as caught:
        mel_filterbank(AudioConfig())
    assert caught.value.hint == "Set NUMBA_CACHE_DIR to a writable folder."
