"""Loss of a training step: cross-entropy or TET, class weights, and losses of unimodal heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snnergy.data import Batch
from snnergy.training.config import TrainConfig
from snnergy.training.targets import target_loss

MODALITIES = ("audio", "video")


def balanced_weights(info: Mapping[str, Any]) -> Tensor:
    """Return the weight of each label, N / (K · n) for n of the N samples of the train split, float32 [K].

    >>> labels = {"labels": ["a", "b"], "splits": {"train": {"labels": {"a": 3, "b": 1}}}}
    >>> [round(weight, 3) for weight in balanced_weights(labels).tolist()]
    [0.667, 2.0]

    Args:
        info: content of dataset.json. A label without samples has weight 0.
    """
    counts = info["splits"]["train"]["labels"]
    numbers = torch.tensor([float(counts.get(label) or 0) for label in info["labels"]])
    weights = numbers.sum() / (len(numbers) * numbers)
    return weights.where(numbers > 0, 0.0)


class StepLoss:
    """Sum of the losses of the samples of a part, except padding.

    Args:
        config: settings.
        weights: weight of each label, float32 [K]; None: all are 1.

    Attributes:
        needs_heads: the network must return the logits of steps and unimodal heads.
    """

    def __init__(self, config: TrainConfig, weights: Tensor | None = None) -> None:
        self._config, self._weights = config, weights
        self.needs_heads = config.loss == "tet" or config.aux_loss > 0

    def __call__(
        self, logits: Tensor, heads: Mapping[str, Tensor], inputs: Batch, other: Tensor, share: float
    ) -> Tensor:
        """Return the loss of a part.

        Args:
            logits: float [B, K], or [T, B, K] for labels of steps.
            heads: result of `SNNergy.forward` with `return_heads`; empty unless `needs_heads`.
            inputs: the part.
            other: labels of the partners in mixup, int64 [B].
            share: weight of the part's own labels.
        """
        if self._config.loss == "tet":
            # Temporal efficient training (arXiv 2202.11946), without its second, regularizing term.
            steps = [self._losses(step, inputs.label, other, share) for step in heads["steps"]]
            losses = torch.stack(steps).mean(0)
        else:
            losses = self._losses(logits, inputs.label, other, share)
        for column, name in enumerate(MODALITIES):
            if self._config.aux_loss and name in heads:
                own = self._losses(heads[name], inputs.label, other, share)
                if inputs.present is not None:
                    own = own * inputs.present[:, column].to(own.device)
                losses = losses + self._config.aux_loss * own
        return (losses * inputs.weight).sum()

    def _losses(self, logits: Tensor, label: Tensor, other: Tensor, share: float) -> Tensor:
        """Return the loss of each sample, float32 [B]; arguments as for `target_loss`."""
        weights = None if self._weights is None else self._weights.to(logits.device)
        smoothing = self._config.label_smoothing
        losses = target_loss(logits, label, smoothing, weights)
        if share == 1:
            return losses
        return torch.lerp(target_loss(logits, other, smoothing, weights), losses, share)
