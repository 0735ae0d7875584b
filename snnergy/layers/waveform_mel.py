"""Audio feature of a prepared dataset, computed from its waveforms on the device of the training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avdata.config.schema import AudioConfig, Config
from avdata.errors import UsageError
from avdata.streaming.collate import MelNormalization


class WaveformMel(nn.Module):
    """Audio feature of waveforms, equal to the one that `avdata prepare` stores as float16.

    torchaudio computes it with the conventions of librosa: centered frames, zero padding, Slaney's mel scale
    and bands of unit area.

    Args:
        config: settings of the preparation.
        normalization: mean and inverse standard deviation of the dataset's mels; None: no normalization.

    Raises:
        UsageError: a setting of the preparation has no equivalent in torchaudio.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, config: Config, normalization: MelNormalization | None = None) -> None:
        from torchaudio import transforms  # noqa: PLC0415  # imported on use: its releases often break

        super().__init__()
        _check(config.audio)
        self._config, audio = config, config.audio
        stft: dict[str, Any] = {
            "n_fft": audio.n_fft,
            "hop_length": audio.hop_length,
            "power": audio.power,
            "pad_mode": "constant",
        }
        if audio.feature == "log-stft":
            self.spectrogram = transforms.Spectrogram(**stft)
        else:
            self.spectrogram = transforms.MelSpectrogram(
                audio.sample_rate, f_min=audio.fmin, f_max=audio.fmax or audio.sample_rate / 2,
                n_mels=audio.n_mels, norm="slaney", mel_scale="slaney", **stft,
            )  # fmt: skip
        scale = normalization or MelNormalization(torch.zeros(()), torch.ones(()))
        self.register_buffer("mean", scale.mean, persistent=False)
        self.register_buffer("factor", scale.factor, persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Return the feature of waveforms.

        Args:
            waveform: float32 [B, n], mono at `audio.sample_rate`.

        Returns:
            float32 [B, T, 1, F, L].
        """
        config, steps = self._config, self._config.video.num_frames
        signal = waveform.clamp(-1, 1) if config.audio.clamp else waveform
        values = _normalize(_compress(self.spectrogram(signal), config.audio), config.audio.normalize)
        if config.audio.layout == "repeat":
            mel = values[:, None].expand(-1, steps, -1, -1)
        else:
            mel = values.unfold(2, config.mel_columns, config.step_columns)[:, :, :steps].transpose(1, 2)
        return ((mel - self.mean) * self.factor)[:, :, None]


def _check(audio: AudioConfig) -> None:
    is_mel = audio.feature == "log-mel"
    unsupported = {
        "feature": audio.feature not in {"log-mel", "log-stft"},
        "normalize": audio.normalize == "ast",
        "resize": audio.resize is not None,
        # torchaudio places the last bin of a mel filterbank at half of an even sample rate.
        "n_fft": is_mel and audio.n_fft % 2 == 1,
        "sample_rate": is_mel and audio.sample_rate % 2 == 1,
    }
    for name in (name for name, is_unsupported in unsupported.items() if is_unsupported):
        msg = f"features=waveform does not support audio.{name}={getattr(audio, name)} of the dataset."
        raise UsageError(msg, hint="Use --features stored, or prepare the dataset with another value")


def _compress(power: Tensor, audio: AudioConfig) -> Tensor:
    """Take the logarithm of spectrograms [B, F, columns] by `audio.log`, `amin`, `ref` and `top_db`."""
    from torchaudio.functional import amplitude_to_DB  # noqa: PLC0415

    if audio.log == "ln":
        return (power + audio.amin).log()
    # With a channel dimension, `top_db` refers to the maximum of each sample instead of the batch.
    values: Tensor = amplitude_to_DB(power[:, None], 10.0, audio.amin, 0.0, audio.top_db)[:, 0]
    return values - values.amax((1, 2), keepdim=True) if audio.ref == "max" else values


def _normalize(values: Tensor, method: str) -> Tensor:
    """Normalize each of the features [B, F, columns] by its own values, as `audio.normalize` defines it."""
    if method == "minmax":
        low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        return (values - low) / (high - low).clamp_min(1e-9)
    if method == "zscore":
        deviation, mean = torch.std_mean(values, (1, 2), correction=0, keepdim=True)
        return (values - mean) / deviation.clamp_min(1e-9)
    return values
