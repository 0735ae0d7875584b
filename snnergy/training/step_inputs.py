"""Inputs of one optimizer step: the augmented samples of this process and their partners in mixtures.

Mixup (arXiv 1710.09412) has one λ and one permutation per step, over the samples of all parts and processes,
so that it depends neither on `accumulate` nor on the number of processes. CutMix (arXiv 1905.04899) replaces
a box of each sample by that of its partner, at the same relative place in spectrograms and frames. Partners
may be samples of another process: all processes exchange their inputs, with uint8 frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from snnergy.data import Batch, to_batch

Samples = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""mel [B, T, 1, F, L], frames uint8 [B, T, C, H, W], label [B] or [B, T], weight [B]; on the CPU present
[B, 2]."""


Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Inputs of one step, converted to floats part by part.

    Attributes:
        samples: samples of all parts of this process.
        partners: the sample that each one is mixed with; None without mixup.
        share: weight λ of a sample itself in the mixture.
        box: CutMix: top, bottom, left and right of the box, relative to the size; None: mixup.
        bounds: index of the first sample of each part, and the number of samples.
        kept: bool [B, 2] on the CPU, modalities that modality dropout keeps; None: all.
    """

    samples: Samples
    partners: Samples | None
    share: float
    bounds: tuple[int, ...]
    box: Box | None = None
    kept: Tensor | None = None

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
        assert batch.present is not None
        if self.partners is None:
            return replace(batch, present=self._shown(batch.present, start, end)), batch.label
        other = to_batch(*(value[start:end] for value in self.partners))
        audio = self._mix(batch.audio, other.audio)
        video = self._mix(batch.video, other.video)
        assert other.present is not None
        # A mixture has a modality if one of its two samples has it.
        present = self._shown(batch.present | other.present, start, end)
        return Batch(audio, video, batch.label, batch.weight, present), other.label

    def _mix(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the mixture of samples [..., H, W] and their partners."""
        if self.box is None:
            return torch.lerp(other, own, self.share)
        height, width = own.shape[-2:]
        top, bottom = (round(edge * height) for edge in self.box[:2])
        left, right = (round(edge * width) for edge in self.box[2:])
        mixed = own.clone()
        mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return mixed

    def _shown(self, present: Tensor, start: int, end: int) -> Tensor:
        """Return the modalities left by modality dropout, at least one of those that are present."""
        if self.kept is None:
            return present
        shown = present & self.kept[start:end]
        return shown.where(shown.any(1, keepdim=True), present)


def mix_step(
    parts: Sequence[Samples],
    alpha: float,
    rng: np.random.Generator,
    *,
    cutmix: float = 0.0,
    rank: int = 0,
    gather: Callable[[Tensor], Tensor] = lambda value: value,
    kept: Tensor | None = None,
) -> StepInputs:
    """Return the inputs of a step for its parts on this process.

    Args:
        parts: augmented samples of each part; equally many on all processes.
        alpha: parameter of the Beta distribution of λ in mixup; 0 disables mixup.
        rng: random generator with the same state on all processes.
        cutmix: the same for CutMix; if both are enabled, each step draws one of them.
        rank: number of this process.
        gather: concatenates a tensor of all processes along its first axis, in the order of ranks.
        kept: bool [B, 2], modalities that modality dropout keeps; None: all.
    """
    samples = _concatenate(parts)
    bounds = tuple(accumulate((len(part[0]) for part in parts), initial=0))
    if not alpha and not cutmix:
        return StepInputs(samples, None, 1.0, bounds, kept=kept)
    is_cut = cutmix > 0 and (not alpha or rng.random() < 0.5)
    alpha = cutmix if is_cut else alpha
    share, box = float(rng.beta(alpha, alpha)), None
    if is_cut:
        box, share = draw_box(share, rng)
    *tensors, present = samples
    mel, frames, label, weight = (gather(value) for value in tensors)
    # GPUs exchange tensors of their own only.
    all_present = gather(present.to(weight.device)).cpu()
    own = slice(rank * bounds[-1], (rank + 1) * bounds[-1])
    other = draw_partners(weight, rng)[own]
    partners = mel[other], frames[other], label[other], weight[other], all_present[other.cpu()]
    return StepInputs(samples, partners, share, bounds, box, kept)


def draw_box(share: float, rng: np.random.Generator) -> tuple[Box, float]:
    """Return a box of CutMix with area 1 - `share` around a random center, and the share outside of it.

    The box is clipped at the edges, so that the returned share is at least `share`.
    """
    half = math.sqrt(1 - share) / 2
    y, x = rng.random(2).tolist()
    box = max(y - half, 0.0), min(y + half, 1.0), max(x - half, 0.0), min(x + half, 1.0)
    return box, 1 - (box[1] - box[0]) * (box[3] - box[2])


def draw_partners(weight: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a random permutation of the samples [N] that are not padding; padding is its own partner."""
    other = torch.arange(len(weight))
    real = weight.cpu().nonzero().squeeze(1)
    other[real] = real[torch.from_numpy(rng.permutation(len(real)))]
    return other.to(weight.device)


def _concatenate(parts: Sequence[Samples]) -> Samples:
    if len(parts) == 1:
        return parts[0]
    mel, frames, label, weight, present = (torch.cat(values) for values in zip(*parts, strict=True))
    return mel, frames, label, weight, present
