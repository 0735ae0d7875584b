"""What CMQKA is compared with: attention of quadratic cost at every stage, and ways to join at the head.

All use the same encoders. FiLM and gating are those that OGM-GE (arXiv 2203.15332) compares; weighting,
CMCI and spiking cross-attention follow S-CMRL's account of them (arXiv 2502.12488), and are our reading.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snnergy.layers.conv_norm import merge_time_batch
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec


class LateFusion(nn.Module):
    """Concatenation, and what the others change of it.

    A join is of two parts, so that a stream can be judged at every step: what is collected of each step's
    firing rates, and what is made of the mean of that.

    Args:
        names: the modalities.
        dim: features of each.
        cell: kind of neuron.
    """

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.width = len(names) * dim

    def collect(self, rates: Mapping[str, Tensor]) -> Tensor:
        """Rates [T, B, C] of each modality as features [T, B, W]."""
        return torch.cat(list(rates.values()), dim=2)

    def combine(self, features: Tensor) -> Tensor:
        """Features [B, W], the mean over steps, as the head's input [B, width]."""
        return features


class Sum(LateFusion):
    """Both modalities' features added."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.width = dim

    def collect(self, rates: Mapping[str, Tensor]) -> Tensor:
        """Rates [T, B, C] of each modality, added."""
        return torch.stack(list(rates.values())).sum(0)


class FiLM(LateFusion):
    """Each modality's features scaled and shifted as the other's say."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.of_audio, self.of_video = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim)

    def combine(self, features: Tensor) -> Tensor:
        """[(1 + γ_v)·a + β_v, (1 + γ_a)·v + β_a]."""
        audio, video = features.chunk(2, dim=1)
        (scale_v, shift_v), (scale_a, shift_a) = (
            part.chunk(2, dim=1) for part in (self.of_video(video), self.of_audio(audio))
        )
        return torch.cat([(1 + scale_v) * audio + shift_v, (1 + scale_a) * video + shift_a], dim=1)


class Gated(LateFusion):
    """Each channel mixed by a gate that sees both: σ(W[a; v]) for the one, the rest for the other."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.gate = nn.Linear(2 * dim, dim)

    def combine(self, features: Tensor) -> Tensor:
        """[g·a, (1 − g)·v]."""
        gate = torch.sigmoid(self.gate(features))
        return features * torch.cat([gate, 1 - gate], dim=1)


class WeightAttention(LateFusion):
    """Each modality weighted by one number, made of both."""

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.weight = nn.Linear(2 * dim, 2)

    def combine(self, features: Tensor) -> Tensor:
        """[w_a·a, w_v·v], w a softmax of two."""
        weights = torch.softmax(self.weight(features), dim=1)
        return (features.unflatten(1, (2, -1)) * weights[:, :, None]).flatten(1)


class CMCI(LateFusion):
    """Both modalities' currents drive one population; its rates, and each modality's own, are classified.

    A linear head on the three beside one another is the sum of a joint head and two unimodal ones.
    """

    def __init__(self, names: tuple[str, ...], dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__(names, dim, cell)
        self.width = 3 * dim
        self.audio, self.video = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm, self.neuron = nn.BatchNorm1d(dim), cell.neuron()
        # As for every sum over tokens: rates are small, and without a bias the population would be silent.
        nn.init.ones_(self.norm.bias)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def collect(self, rates: Mapping[str, Tensor]) -> Tensor:
        """The population's spikes, and the rates [T, B, 3·C]."""
        current = self.audio(rates["audio"]) + self.video(rates["video"])
        spikes = self.neuron(self.norm(merge_time_batch(current)).unflatten(0, current.shape[:2]))
        return torch.cat([spikes, rates["audio"], rates["video"]], dim=2)

    def combine(self, features: Tensor) -> Tensor:
        """The population's rates through an MLP, beside the modalities' own."""
        joint, own = features.tensor_split([self.width // 3], dim=1)
        return torch.cat([self.mlp(joint), own], dim=1)
