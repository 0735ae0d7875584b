"""Inputs of one optimizer step: the augmented samples of this process and their partners in mixup.

Mixup (arXiv 1710.09412) has one λ and one permutation per step, over the samples of all parts and processes,
so that it depends neither on `accumulate` nor on the number of processes. Partners may be samples of another
process: all processes exchange their inputs, with uint8 frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from snnergy.data import Batch, to_batch

Samples = tuple[Tensor, Tensor, Tensor, Tensor]
"""mel [B, T, 1, F, L], frames uint8 [B, T, C, H, W], label [B] and weight [B]."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Inputs of one step, converted to floats part by part.

    Attributes:
        samples: samples of all parts of this process.
        partners: the sample that each one is mixed with; None without mixup.
        share: weight λ of a sample itself in the mixture.
        bounds: index of the first sample of each part, and the number of samples.
    """

    samples: Samples
    partners: Samples | None
    share: float
    bounds: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self.bounds) - 1

    def part(self, number: int) -> tuple[Batch, Tensor]:
        """Return the mixed samples of a part with their own labels, and the labels of their partners.

        Both modalities use the same λ and the same partner. Two partners would pair audio and video that no
        label describes.
        """
        start, end = self.bounds[number : number + 2]
        batch = to_batch(*(value[start:end] for value in self.samples))
        if self.partners is None:
            return batch, batch.label
        other = to_batch(*(value[start:end] for value in self.partners))
        audio = torch.lerp(other.audio, batch.audio, self.share)
        video = torch.lerp(other.video, batch.video, self.share)
        return Batch(audio, video, batch.label, batch.weight), other.label


def mix_step(
    parts: Sequence[Samples],
    alpha: float,
    rng: np.random.Generator,
    *,
    rank: int = 0,
    gather: Callable[[Tensor], Tensor] = lambda value: value,
) -> StepInputs:
    """Return the inputs of a step for its parts on this process.

    Args:
        parts: augmented samples of each part; equally many on all processes.
        alpha: parameter of the Beta distribution of λ; 0 disables mixup.
        rng: random generator with the same state on all processes.
        rank: number of this process.
        gather: concatenates a tensor of all processes along its first axis, in the order of ranks.
    """
    samples = _concatenate(parts)
    bounds = tuple(accumulate((len(part[0]) for part in parts), initial=0))
    if alpha == 0:
        return StepInputs(samples, None, 1.0, bounds)
    share = float(rng.beta(alpha, alpha))
    mel, frames, label, weight = (gather(value) for value in samples)
    own = slice(rank * bounds[-1], (rank + 1) * bounds[-1])
    other = draw_partners(weight, rng)[own]
    return StepInputs(samples, (mel[other], frames[other], label[other], weight[other]), share, bounds)


def draw_partners(weight: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a random permutation of the samples [N] that are not padding; padding is its own partner."""
    other = torch.arange(len(weight))
    real = weight.cpu().nonzero().squeeze(1)
    other[real] = real[torch.from_numpy(rng.permutation(len(real)))]
    return other.to(weight.device)


def _concatenate(parts: Sequence[Samples]) -> Samples:
    if len(parts) == 1:
        return parts[0]
    mel, frames, label, weight = (torch.cat(values) for values in zip(*parts, strict=True))
    return mel, frames, label, weight
