"""Downmix audio channels to mono, and detect channels that cancel each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from avdata.errors import SampleFlag

Channel = Literal["mix", "left", "right"]
"""Value of `audio.channel`."""

MIN_MIX_ENERGY = 0.1
"""Share of the channels' energy that their sum has at least, unless they cancel each other.

Uncorrelated channels have a share of 1, equal ones of their number, opposite ones of 0.
"""

ENERGY_STRIDE = 7
"""Distance in samples of those whose energy is computed: all of them would take 2 % of the decoding."""


class Downmixer:
    """Mixes successive pieces of a track to mono, as `audio.channel` defines it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._mix_energy = self._channels_energy = 0.0

    def mix(self, channels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Average the channels, float32 [C, n] to [n], summed in their order; or return one of them."""
        if len(channels) == 1 or self._channel == "left":
            return np.ascontiguousarray(channels[0])
        if self._channel == "right":
            return np.ascontiguousarray(channels[1])
        total = channels[0] + channels[1]
        for channel in channels[2:]:
            total += channel
        self._mix_energy += _energy(total)
        self._channels_energy += sum(_energy(channel) for channel in channels)
        total /= np.float32(len(channels))
        return np.asarray(total)

    def flags(self) -> tuple[SampleFlag, ...]:
        """Return PHASE_CANCELLED if the mix lost most of the channels' energy."""
        is_cancelled = self._mix_energy < MIN_MIX_ENERGY * self._channels_energy
        return (SampleFlag.PHASE_CANCELLED,) if is_cancelled else ()


def _energy(samples: np.ndarray) -> float:
    samples = samples[::ENERGY_STRIDE]
    # Unlike BLAS, einsum sums in an order that does not depend on the number of threads.
    return float(np.einsum("i,i->", samples, samples))
