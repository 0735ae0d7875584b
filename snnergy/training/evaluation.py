"""Evaluation of a network: every sample of a split counted once, over all processes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from avdata.errors import AvdataError
from avdata.streaming.dataset import AVDataset
from avdata.streaming.loader import AVLoader
from snnergy.data import audio_video_batches, to_device, video_channels
from snnergy.models.network import SNNergy, recalibrate
from snnergy.training.diagnostics import record_firing_rates

CALIBRATION_BATCHES = 10
"""The fewest that `recalibrate` recommends; each batch costs one forward pass per evaluation."""

Reduce = Callable[[Tensor], Tensor]


def check_compatible(network: SNNergy, data: AVDataset) -> None:
    """Raise unless a dataset has the number of labels and color channels that a network expects.

    Raises:
        AvdataError: the dataset does not match the network.
    """
    config = network.config
    channels = video_channels(data, config.fusion)
    if (config.num_classes, config.video_channels) != (len(data.labels), channels):
        msg = (
            f"Dataset does not match the network: the dataset has {len(data.labels)} labels and {channels}"
            f" color channels, the network {config.num_classes} and {config.video_channels}."
        )
        raise AvdataError(msg, hint="use a dataset prepared with the recipe and settings of the training")


def recalibrate_batch_norm(
    network: nn.Module, data: AVDataset, batch_size: int, device: torch.device | str
) -> None:
    """Recalibrate batch norms on the train split; otherwise a network after few steps is silent.

    The batches are the first ones of epoch 0, without augmentation, so that a resumed run uses the same. A
    partial last batch is dropped: it would count as much as a full one, and may have one sample.
    """
    data.set_epoch(0)
    has_full_batch = len(data) >= batch_size * data.world_size
    loader = data.loader(batch_size, num_workers=0, drop_last=has_full_batch)
    recalibrate(network, audio_video_batches(loader, CALIBRATION_BATCHES, device))


@torch.no_grad()
def evaluate_split(
    network: nn.Module,
    loader: AVLoader,
    labels: Sequence[str],
    device: torch.device | str,
    *,
    reduce: Reduce = lambda value: value,
    rates: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return accuracy, loss and confusion matrix of a network on a split.

    Args:
        network: network with recalibrated batch norms.
        loader: loader of this process's part of the split.
        labels: names of the classes, in order.
        device: device of the network.
        reduce: sums a tensor over all processes.
        rates: filled with the firing rates of the first batch.

    Returns:
        `accuracy`, `loss`, `samples`, `per_class` (recall of each label), `confusion` (rows: true labels).
    """
    network.eval()
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(loader):
        inputs = to_device(batch, device)
        if number == 0 and rates is not None:
            with record_firing_rates(network) as measured_rates:
                logits = network(inputs.audio, inputs.video)
            rates.update(measured_rates)
        else:
            logits = network(inputs.audio, inputs.video)
        real = inputs.weight > 0
        losses = functional.cross_entropy(logits.float(), inputs.label, reduction="none")
        loss += losses[real].double().sum()
        cells = (inputs.label * len(labels) + logits.argmax(1))[real]
        confusion += torch.bincount(cells, minlength=len(labels) ** 2).view_as(confusion)
    return _summarize(reduce(confusion).cpu(), float(reduce(loss)), labels)


def _summarize(confusion: Tensor, loss: float, labels: Sequence[str]) -> dict[str, Any]:
    total, correct, support = int(confusion.sum()), confusion.diagonal(), confusion.sum(1)
    per_class: Mapping[str, float | None] = {
        name: round(float(correct[index] / support[index]), 6) if support[index] else None
        for index, name in enumerate(labels)
    }
    return {
        "accuracy": round(float(correct.sum()) / max(total, 1), 6),
        "loss": round(loss / max(total, 1), 6),
        "samples": total,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def class_table(measured: Mapping[str, Any], labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Return rows of label, samples, precision, recall and F1; `–` if undefined.

    >>> class_table({"confusion": [[3, 1], [0, 4]]}, ["a", "b"])
    [('a', '4', '1.0000', '0.7500', '0.8571'), ('b', '4', '0.8000', '1.0000', '0.8889')]
    """
    confusion = measured["confusion"]
    rows = []
    for index, label in enumerate(labels):
        correct, support = confusion[index][index], sum(confusion[index])
        predicted = sum(row[index] for row in confusion)
        ratios = [(correct, predicted), (correct, support), (2 * correct, predicted + support)]
        rows.append((label, str(support), *(f"{part / of:.4f}" if of else "–" for part, of in ratios)))
    return rows


CLASS_COLUMNS = ("label", "samples", "precision", "recall", "F1")


def write_classes(path: Path, measured: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Write the table of `class_table` as CSV."""
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, lineterminator="\n").writerows([CLASS_COLUMNS, *class_table(measured, labels)])
