"""Evaluation: batch norms recalibrated, every sample of a split counted once, over all processes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from avdata.errors import AvdataError
from snnergy.data import AVDataset, AVLoader, audio_video_batches, to_device
from snnergy.models.network import SNNergy, recalibrate
from snnergy.training.diagnostics import record_firing_rates

CALIBRATION_BATCHES = 10
"""The fewest that MODEL.md §7 allows; each costs a forward pass in every evaluation."""

Reduce = Callable[[Tensor], Tensor]


def check_compatible(network: SNNergy, data: AVDataset) -> None:
    """See that a set's labels and pictures are of the kind that a network was trained on.

    Raises:
        AvdataError: they are not.
    """
    channels = data.info["shape"]["frames"][-1]
    held = network.config
    if (held.num_classes, held.video_channels) != (len(data.labels), channels):
        msg = (
            f"the set has {len(data.labels)} labels and pictures of {channels} channels,"
            f" the network {held.num_classes} and {held.video_channels}"
        )
        raise AvdataError(msg, hint="measure it on a set of the dataset that it was trained on")


def recalibrate_batch_norm(
    network: nn.Module, data: AVDataset, batch_size: int, device: torch.device | str
) -> None:
    """Set the batch norms to what the layers see now: without it a young network is silent.

    The batches are the first of epoch 0, unchanged by augmentation, so that a resumed run has the same ones.
    What is left at the epoch's end would count as much as a whole batch, and may be one sample.
    """
    data.set_epoch(0)
    whole = len(data) >= batch_size * data.world_size
    loader = data.loader(batch_size, num_workers=0, drop_last=whole)
    recalibrate(network, audio_video_batches(loader, CALIBRATION_BATCHES, device))


@torch.no_grad()
def evaluate_split(
    network: nn.Module,
    loader: AVLoader,
    labels: Sequence[str],
    device: torch.device | str,
    *,
    add_up: Reduce = lambda value: value,
    rates: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Accuracy, loss and confusion of a network on a loader's split.

    Args:
        network: with batch norms that were recalibrated.
        loader: this process's share of the split.
        labels: names of the classes, in order.
        device: where the network is.
        add_up: sums a tensor over all processes.
        rates: filled with the firing rates in the first batch.

    Returns:
        `accuracy`, `loss`, `samples`, `per_class` (the recall of each label), `confusion`.
    """
    network.eval()
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(loader):
        made = to_device(batch, device)
        if number == 0 and rates is not None:
            with record_firing_rates(network) as seen:
                logits = network(made.audio, made.video)
            rates.update(seen)
        else:
            logits = network(made.audio, made.video)
        real = made.weight > 0
        losses = functional.cross_entropy(logits.float(), made.label, reduction="none")
        loss += losses[real].double().sum()
        places = (made.label * len(labels) + logits.argmax(1))[real]
        confusion += torch.bincount(places, minlength=len(labels) ** 2).view_as(confusion)
    return _summed_up(add_up(confusion).cpu(), float(add_up(loss)), labels)


def _summed_up(confusion: Tensor, loss: float, labels: Sequence[str]) -> dict[str, Any]:
    total, right, held = int(confusion.sum()), confusion.diagonal(), confusion.sum(1)
    per_class: Mapping[str, float | None] = {
        name: round(float(right[index] / held[index]), 6) if held[index] else None
        for index, name in enumerate(labels)
    }
    return {
        "accuracy": round(float(right.sum()) / max(total, 1), 6),
        "loss": round(loss / max(total, 1), 6),
        "samples": total,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def class_table(measured: Mapping[str, Any], labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows of label, samples, precision, recall and F1 from a confusion matrix; `–` where undefined.

    >>> class_table({"confusion": [[3, 1], [0, 4]]}, ["a", "b"])
    [('a', '4', '1.0000', '0.7500', '0.8571'), ('b', '4', '0.8000', '1.0000', '0.8889')]
    """
    confusion = measured["confusion"]
    rows = []
    for index, label in enumerate(labels):
        right, held = confusion[index][index], sum(confusion[index])
        said = sum(row[index] for row in confusion)
        shares = [(right, said), (right, held), (2 * right, said + held)]
        rows.append((label, str(held), *(f"{part / of:.4f}" if of else "–" for part, of in shares)))
    return rows


CLASS_COLUMNS = ("label", "samples", "precision", "recall", "F1")


def write_classes(path: Path, measured: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Write the table of classes as CSV."""
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, lineterminator="\n").writerows([CLASS_COLUMNS, *class_table(measured, labels)])
