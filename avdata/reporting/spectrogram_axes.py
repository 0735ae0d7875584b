"""Frequency ticks and the common color scale of the spectrograms on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avdata.features.audio import AUDIO_FEATURES
from avdata.reporting.charts import Tick, ticks
from avdata.reporting.sample_plot import frequency_edges
from avdata.visualization.images import colorize, image_data_uri

TICKS_HZ = (125, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000)

MIN_TICK_DISTANCE = 0.15
"""Smallest distance of two frequency ticks, as a fraction of the axis."""

UNITS = {"minmax": "share of the sample's range", "zscore": "standard deviations", "ast": "AST's scale"}
"""Units of normalized values, by `audio.normalize`."""


@dataclass(frozen=True)
class ColorScale:
    """Common color scale of spectrograms.

    Attributes:
        low: value of the darkest color.
        high: value of the brightest color.
        unit: unit of the values.
        image: data URI of the colors from `low` to `high`, left to right.
        ticks: ticks from `low` to `high`.
    """

    low: float
    high: float
    unit: str
    image: str
    ticks: tuple[Tick, ...]


def color_scale(levels: Sequence[tuple[float, float]], audio: Mapping[str, Any]) -> ColorScale | None:
    """Return the color scale that suits most samples, or None without samples.

    Args:
        levels: `color_limits` of each sample.
        audio: settings of the section `audio`.
    """
    if not levels:
        return None
    # The quietest tenth of the samples may be darker: one silent clip must not take the colors of the others.
    low = float(np.percentile([level for level, _ in levels], 10))
    high = max(level for _, level in levels)
    high = high if high > low else low + 1
    ramp = np.linspace(low, high, 256, dtype=np.float32)[None].repeat(8, axis=0)
    return ColorScale(
        low,
        high,
        value_unit(audio),
        image_data_uri(colorize(ramp, low, high)),
        ticks(low, high, 6, edges=True),
    )


def value_unit(audio: Mapping[str, Any]) -> str:
    """Return the unit of stored spectrogram values.

    >>> value_unit({"feature": "log-mel", "normalize": "none", "log": "db"})
    'dB'
    """
    if audio["normalize"] != "none":
        return UNITS[audio["normalize"]]
    if audio["feature"] == "pcen":
        return "PCEN"
    return "dB" if audio["feature"] != "kaldi-fbank" and audio["log"] == "db" else "natural logarithm"


def frequency_ticks(audio: Mapping[str, Any], rows: int) -> tuple[Tick, ...]:
    """Return ticks in Hz of the frequency axis, from the bottom up.

    Args:
        audio: settings of the section `audio`.
        rows: rows of the spectrogram, F.
    """
    edges = frequency_edges(audio, rows, AUDIO_FEATURES[audio["feature"]].mel_scale)
    top = audio["fmax"] or audio["sample_rate"] / 2
    shown = [Tick(0.0, f"{audio['fmin']:,.0f}"), Tick(1.0, f"{top:,.0f}")]
    positions = np.interp(TICKS_HZ, edges, np.linspace(0, 1, len(edges)), left=0, right=1)
    # From the top, where the bands are widest.
    for frequency, position in reversed(list(zip(TICKS_HZ, positions.tolist(), strict=True))):
        if all(abs(tick.position - position) >= MIN_TICK_DISTANCE for tick in shown):
            shown.append(Tick(position, f"{frequency:,.0f}"))
    return tuple(sorted(shown, key=lambda tick: tick.position))
