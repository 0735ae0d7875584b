from __future__ import annotations

import librosa
import numpy as np
import pytest

from avdata.config.schema import Config, build_config
from avdata.reporting.spectrogram_axes import color_scale, frequency_ticks


@pytest.mark.parametrize("fmin", [0.0, 50.0])
def test_frequency_ticks_are_at_the_bands_of_librosa(fmin: float) -> None:
    audio = build_config({"audio": {"fmin": fmin}}).audio.model_dump()
    axis = frequency_ticks(audio, 128)
    assert (axis[0].text, axis[-1].text) == (f"{fmin:.0f}", "8,000")
    assert np.diff([tick.position for tick in axis]).min() >= 0.15
    centers = librosa.mel_frequencies(130, fmin=fmin, fmax=8000)[1:-1]
    for tick in axis[1:-1]:
        band = int(tick.position * 128)
        assert np.abs(centers - float(tick.text.replace(",", ""))).argmin() in {band - 1, band, band + 1}


def test_color_scale_ignores_one_silent_sample() -> None:
    audio = Config().audio.model_dump()
    colors = color_scale([(-100.0, -90.0), *[(-60.0, 10.0)] * 20], audio)
    assert colors is not None
    assert (colors.low, colors.high, colors.unit) == (-60.0, 10.0, "dB")
    assert [tick.text for tick in colors.ticks] == ["-60", "-40", "-20", "0", "10"]
    assert color_scale([], audio) is None
