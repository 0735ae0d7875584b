"""Targets of a training: one label per clip, or one per time step.

A dataset of localized events, such as AVE, labels every step with the event's class or `background`. The
network then classifies each step, its loss is the mean over steps, and its accuracy counts steps (segments).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from avdata.errors import UsageError
from snnergy.training.config import TrainConfig


def has_step_targets(config: TrainConfig, info: Mapping[str, Any]) -> bool:
    """Return whether a training classifies each step.

    Args:
        config: settings.
        info: content of dataset.json.

    Raises:
        UsageError: the dataset has no labels of steps, or another setting requires labels of clips.
    """
    if config.targets == "clip" or (config.targets == "auto" and not info["background"]):
        return False
    if not info["background"]:
        msg = f"targets=step requires labels of steps, and the dataset {info['name']} has none."
        raise UsageError(msg, hint="Omit targets")
    for name, is_set in (
        ("ogm_ge", config.ogm_ge), ("augment.shift", config.augment.shift), ("aux_loss", config.aux_loss),
        ("loss=tet", config.loss == "tet"), ("class_weights", config.class_weights != "none"),
    ):  # fmt: skip
        if is_set:
            msg = f"{name} requires one label per clip, and the dataset {info['name']} has one per step."
            raise UsageError(msg, hint=f"Add --set targets=clip, or omit {name}")
    return True


def class_names(info: Mapping[str, Any], *, per_step: bool) -> tuple[str, ...]:
    """Return the names of a network's outputs: the labels of a dataset, for steps with its background."""
    background = [info["background"]] if per_step and info["background"] else []
    return (*info["labels"], *background)


def target_loss(
    logits: Tensor, label: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of each sample, float32 [B].

    Args:
        logits: [B, K], or [T, B, K] for steps.
        label: int64 [B], or [B, T].
        label_smoothing: share of the target that is spread over all classes.
        weights: weight of each class, float32 [K]; None: all are 1.
    """
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": "none", "weight": weights}
    if label.dim() == 1:
        return functional.cross_entropy(logits.float(), label, **options)
    return functional.cross_entropy(logits.float().permute(1, 2, 0), label, **options).mean(1)


def flatten_targets(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, K] and labels [N], where N counts samples or the steps of all samples."""
    if label.dim() == 1:
        return logits, label
    return logits.transpose(0, 1).flatten(0, 1), label.flatten()
