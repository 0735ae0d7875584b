"""Late fusion: methods that combine the modalities only at the head.

All use the same encoders as CMQKA. FiLM and gating are the methods that OGM-GE (arXiv 2203.15332) compares.
`weight_attention` and CMCI follow the description in S-CMRL (arXiv 2502.12488) and are our interpretation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snnergy.layers.conv_norm import merge_time_batch
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec


class LateFusion(nn.Module):
    """Concatenation of features; base class of the other methods.

    Late fusion has two parts, so that a stream can be classified after every step: `collect` runs on the
    features of each step, `combine` on the mean of its results over steps.

    Args:
        names: modalities.
        dim: features per modality.
        cell: kind of neuron.

    Attributes:
        width: number of inputs of the head.
    """

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.width = len(names) * dim

    def collect(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return features [T, B, W] of the features [T, B, C] of each modality."""
        return torch.cat(list(features.values()), dim=2)

    def combine(self, features: Tensor) -> Tensor:
        """Return the head's input [B, width] for features [B, W], the mean over steps."""
        return features


class Sum(LateFusion):
    """Sum of the features of both modalities."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.width = dim

    def collect(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the features [T, B, C] of all modalities."""
        return torch.stack(list(features.values())).sum(0)


class FiLM(LateFusion):
    """Features of each modality, scaled and shifted by functions of the other."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.of_audio, self.of_video = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim)

    def combine(self, features: Tensor) -> Tensor:
        """Return [(1 + γ_v)·a + β_v, (1 + γ_a)·v + β_a]."""
        audio, video = features.chunk(2, dim=1)
        (scale_v, shift_v), (scale_a, shift_a) = (
            part.chunk(2, dim=1) for part in (self.of_video(video), self.of_audio(audio))
        )
        return torch.cat([(1 + scale_v) * audio + shift_v, (1 + scale_a) * video + shift_a], dim=1)


class Gated(LateFusion):
    """Features weighted per channel by a gate g = σ(W[a; v])."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.gate = nn.Linear(2 * dim, dim)

    def combine(self, features: Tensor) -> Tensor:
        """Return [g·a, (1 − g)·v]."""
        gate = torch.sigmoid(self.gate(features))
        return features * torch.cat([gate, 1 - gate], dim=1)


class WeightAttention(LateFusion):
    """Each modality weighted by one number, a function of both."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.weight = nn.Linear(2 * dim, 2)

    def combine(self, features: Tensor) -> Tensor:
        """Return [w_a·a, w_v·v] with w a softmax over the two modalities."""
        weights = torch.softmax(self.weight(features), dim=1)
        return (features.unflatten(1, (2, -1)) * weights[:, :, None]).flatten(1)


class CMCI(LateFusion):
    """Spikes of a neuron population driven by both modalities, concatenated with the features of each.

    A linear head on the three parts is the sum of a joint head and two unimodal heads.
    """

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.width = 3 * dim
        self.audio, self.video = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm, self.neuron = nn.BatchNorm1d(dim), cell.neuron()
        # As for sums over tokens: without a bias of 1 the population would be silent.
        nn.init.ones_(self.norm.bias)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def collect(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the population's spikes and the features of both modalities, [T, B, 3·C]."""
        current = self.audio(features["audio"]) + self.video(features["video"])
        spikes = self.neuron(self.norm(merge_time_batch(current)).unflatten(0, current.shape[:2]))
        return torch.cat([spikes, features["audio"], features["video"]], dim=2)

    def combine(self, features: Tensor) -> Tensor:
        """Return the population's rates after an MLP, and the features of both modalities."""
        joint, own = features.tensor_split([self.width // 3], dim=1)
        return torch.cat([self.mlp(joint), own], dim=1)
