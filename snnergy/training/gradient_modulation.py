"""OGM-GE: reduce the gradients of the leading modality's encoder (arXiv 2203.15332, CVPR 2022).

The head on concatenated features is a sum of two parts. The score of a modality is the probability that its
part, with half of the bias, gives to the true label. ρ is the ratio of a modality's score to the other's.
The gradients of the encoder with ρ > 1 are multiplied by 1 − tanh(α·ρ). To those of both encoders zero-mean
noise with their own standard deviation is added (GE). Both apply to weights of convolutions only, as in the
published code (GeWu-Lab/OGM-GE_CVPR2022), which stops after epoch 50.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avdata.errors import UsageError
from snnergy.models.network import SNNergy

MODALITIES = ("audio", "video")


class OGMGE:
    """Gradient modulation of a network's two encoders.

    Args:
        network: network with two encoders and a head on their concatenated features.
        alpha: strength α.

    Raises:
        UsageError: the network is not of this kind.
    """

    def __init__(self, network: SNNergy, alpha: float) -> None:
        """Register the hook that records the head's input."""
        head, width = network.head, 2 * network.config.dims[-1]
        has_both = set(network.encoders) == set(MODALITIES)
        if not isinstance(head, nn.Linear) or not has_both or head.in_features != width:
            msg = (
                f"ogm_ge does not support fusion={network.config.fusion!r}: needs two concatenated encoders."
            )
            raise UsageError(msg, hint="Choose --fusion concat or cmqka, or omit ogm_ge")
        self._network, self._head, self._alpha = network, head, alpha
        self._features: Tensor | None = None
        self._scores = torch.zeros(2, dtype=torch.float64)
        head.register_forward_pre_hook(self._record)

    def _record(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training:
            self._features = inputs[0].detach().float()

    @torch.no_grad()
    def count(self, label: Tensor, weight: Tensor) -> None:
        """Add the scores of the last forward pass: label int64 [B], weight float32 [B]."""
        assert self._features is not None
        half = self._head.in_features // 2
        scores = []
        for part, weights in zip(
            self._features.split(half, 1), self._head.weight.split(half, 1), strict=True
        ):
            logits = part @ weights.float().T + self._head.bias.float() / 2
            truth = logits.softmax(1).gather(1, label[:, None]).squeeze(1)
            scores.append((truth * weight).sum())
        self._scores = self._scores.to(label.device) + torch.stack(scores).double()

    @torch.no_grad()
    def apply(self, seed: int, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Modify the gradients of both encoders, equally in all processes.

        Args:
            seed: seed of the noise, determined by run and step.
            reduce: sums a tensor over all processes.

        Returns:
            The factor of each modality's gradients.
        """
        audio, video = reduce(self._scores).clamp_min(1e-12).tolist()
        self._scores = torch.zeros_like(self._scores)
        ratios = {"audio": audio / video, "video": video / audio}
        factors = {name: gradient_factor(ratio, self._alpha) for name, ratio in ratios.items()}
        # One generator: the noise of the two encoders must not be equal.
        generator = torch.Generator().manual_seed(seed)
        for name, factor in factors.items():
            for weight in self._network.encoders[name].parameters():
                if weight.grad is not None and weight.grad.ndim == 4:
                    deviation = weight.grad.std() + 1e-8
                    noise = torch.randn(weight.shape, generator=generator).to(weight.grad)
                    weight.grad.mul_(factor).add_(noise * deviation)
        return factors


def gradient_factor(ratio: float, alpha: float) -> float:
    """Return the factor for a modality whose score is `ratio` times the other's.

    >>> gradient_factor(0.5, 0.8), round(gradient_factor(2.0, 0.8), 4)
    (1.0, 0.0783)
    """
    return 1.0 if ratio <= 1 else float(1 - torch.tanh(torch.tensor(alpha * ratio)))
