"""Predictions of a network for each sample of a split, over all processes, as rows and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avdata.errors import escape_controls
from avdata.storage.atomic import atomic_write
from snnergy.training.targets import flatten_targets

COLUMNS = ("split", "key", "label", "predicted", "probability")


class Predictions:
    """Predictions of one split.

    Attributes:
        samples: by key, the number of the true label and the probability of each label, float64 [K].
    """

    def __init__(self) -> None:
        self.samples: dict[str, tuple[int, list[float]]] = {}

    def add(self, keys: Sequence[str], label: Tensor, logits: Tensor, is_real: Tensor) -> None:
        """Add a batch.

        Args:
            keys: keys of the B samples. Those of steps are KEY:STEP.
            label: int64 [B], or [B, T] for labels of steps.
            logits: float [B, K], or [T, B, K].
            is_real: bool [B], false for padding.
        """
        if label.dim() == 2:
            count = label.shape[1]
            keys = [f"{key}:{step}" for key in keys for step in range(count)]
            is_real = is_real.repeat_interleave(count)
        logits, label = flatten_targets(logits, label)
        shares = logits.double().softmax(1).tolist()
        rows = zip(keys, label.tolist(), shares, is_real.tolist(), strict=True)
        self.samples |= {key: (number, share) for key, number, share, real in rows if real}

    def gather(self) -> None:
        """Exchange the predictions of all processes; all of them must call this method."""
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.samples)
        self.samples = {key: sample for part in parts for key, sample in part.items()}


def write_predictions(path: Path, splits: Mapping[str, Predictions], labels: Sequence[str]) -> None:
    """Write one row per sample, in the order of keys, with the probability of every label.

    Args:
        path: the CSV file to write.
        splits: predictions by name of the split.
        labels: names of the network's classes.

    Raises:
        AvdataError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(escape_controls(label) for label in labels)])
    for split, predictions in splits.items():
        for key, (number, shares) in sorted(predictions.samples.items()):
            best = max(range(len(labels)), key=shares.__getitem__)
            named = [split, key, escape_controls(labels[number]), escape_controls(labels[best])]
            writer.writerow([*named, *(f"{share:.6f}" for share in (shares[best], *shares))])
    atomic_write(path, text.getvalue().encode())
