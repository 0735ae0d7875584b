"""Exact sums over mels, by band. They do not depend on the order, so parts of a dataset can be merged.

A float16 is an integer multiple of 2^-24, and its square one of 2^-48. Sums of these integers are exact,
where float64 would round differently for every grouping of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

SCALE_BITS = 24
"""Every float16 is an integer multiple of 2^-24."""

_HALF_BITS = 20
"""Bits of the lower half of such an integer, which has 41 bits: squares of halves fit in int64 sums."""


class MelSums:
    """Number of values, their sum and the sum of their squares, by mel band.

    Attributes:
        count: number of values of each band.
        sums: sum of each band, in units of 2^-24.
        squares: sum of the squares of each band, in units of 2^-48.
    """

    def __init__(self, count: int = 0, sums: Iterable[int] = (), squares: Iterable[int] = ()) -> None:
        self.count, self.sums, self.squares = count, list(sums), list(squares)

    def add_mel(self, mel: np.ndarray) -> None:
        """Add the mel of a sample, finite float16 [T, F, L]."""
        scaled = np.ldexp(mel.astype(np.float64), SCALE_BITS).astype(np.int64)
        high = scaled >> _HALF_BITS
        low = scaled - (high << _HALF_BITS)
        products = [
            np.einsum("tfl,tfl->f", first, second).tolist()
            for first, second in ((high, high), (high, low), (low, low))
        ]
        squares = [
            (upper << 2 * _HALF_BITS) + (mixed << _HALF_BITS + 1) + lower
            for upper, mixed, lower in zip(*products, strict=True)
        ]
        self.add(MelSums(mel.shape[0] * mel.shape[2], scaled.sum(axis=(0, 2)).tolist(), squares))

    def add(self, other: MelSums) -> None:
        """Add the sums of other values."""
        if not self.count:
            self.count, self.sums, self.squares = other.count, list(other.sums), list(other.squares)
        elif other.count:
            self.count += other.count
            self.sums = [first + second for first, second in zip(self.sums, other.sums, strict=True)]
            self.squares = [first + second for first, second in zip(self.squares, other.squares, strict=True)]

    def statistics(self) -> dict[str, list[float]] | None:
        """Return `mean` and `std` by band, each rounded once; None without values."""
        if not self.count:
            return None
        means = [Fraction(total, self.count << SCALE_BITS) for total in self.sums]
        variances = [
            Fraction(total, self.count << 2 * SCALE_BITS) - mean**2
            for total, mean in zip(self.squares, means, strict=True)
        ]
        return {
            "mean": [float(mean) for mean in means],
            "std": [math.sqrt(variance) for variance in variances],
        }

    def to_json(self) -> dict[str, Any]:
        """Return the sums as JSON. The integers are texts, because they may exceed 64 bits."""
        return {
            "count": self.count,
            "sum": list(map(str, self.sums)),
            "squares": list(map(str, self.squares)),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MelSums:
        """Return the sums of `to_json`."""
        return cls(content["count"], map(int, content["sum"]), map(int, content["squares"]))
