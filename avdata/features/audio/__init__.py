"""Audio features by value of `audio.feature`, and the stored feature of a sample."""

from __future__ import annotations

import numpy as np

from avdata.config.schema import AudioConfig, Config
from avdata.features.audio.base import AudioFeature
from avdata.features.audio.kaldi_fbank import KaldiFbank
from avdata.features.audio.log_mel import LogMel
from avdata.features.audio.log_stft import LogSTFT
from avdata.features.audio.mel_filterbank import MelFilterbank
from avdata.features.audio.pcen import PCEN
from avdata.features.audio.spectrogram import normalize, resize

AUDIO_FEATURES: dict[str, AudioFeature] = {
    "log-mel": LogMel(), "log-stft": LogSTFT(), "pcen": PCEN(), "kaldi-fbank": KaldiFbank(),
}  # fmt: skip


def feature_bins(audio: AudioConfig) -> int:
    """Return the rows of the stored feature, F."""
    return audio.resize[0] if audio.resize else AUDIO_FEATURES[audio.feature].bins(audio)


def feature_filterbank(audio: AudioConfig) -> MelFilterbank | None:
    """Return the filterbank that `audio.feature` needs; None if its rows are not mel bands."""
    return AUDIO_FEATURES[audio.feature].filterbank(audio)


def compute_audio_feature(
    waveform: np.ndarray, config: Config, filterbank: MelFilterbank | None = None
) -> np.ndarray:
    """Compute `audio.feature` of a window and cut it into steps, or repeat it for each.

    With `audio.layout=step`, each step has the L columns that are centered inside it.

    Args:
        waveform: float32 [n], mono at `audio.sample_rate`.
        config: the settings; `video.num_frames` is T.
        filterbank: see `AudioFeature.compute`.

    Returns:
        float32 [T, F, L].
    """
    audio, steps = config.audio, config.video.num_frames
    values = AUDIO_FEATURES[audio.feature].compute(waveform, audio, filterbank)
    values = normalize(values, audio.normalize)
    if audio.resize:
        values = resize(values, audio.resize)
    if audio.layout == "repeat":
        return np.repeat(values[None], steps, axis=0)
    columns, stride = config.mel_columns, config.step_columns
    return np.stack([values[:, step * stride : step * stride + columns] for step in range(steps)])
