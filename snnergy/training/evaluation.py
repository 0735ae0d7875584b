"""Evaluation of a network: every sample of a split counted once, over all processes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from avdata.errors import AvdataError, escape_controls
from avdata.streaming.dataset import AVDataset
from avdata.streaming.loader import AVLoader
from snnergy.data import MelTransform, audio_video_batches, to_device, video_channels
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy, recalibrate
from snnergy.training.diagnostics import record_firing_rates

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

CALIBRATION_BATCHES = 10
"""The fewest that `recalibrate` recommends; each batch costs one forward pass per evaluation."""

PADDING = -1
"""Label of padding in the metrics, which ignore it."""


def match_dataset(network: SNNergy, data: AVDataset) -> tuple[DatasetFacts, Tensor | None]:
    """Compare a dataset with the training set of a network.

    Returns:
        The facts about the training set, with whose statistics mels must be normalized, and the network's
        output for each label of the dataset, int64; None if the labels are equal.

    Raises:
        AvdataError: the dataset has other settings of a modality that the network reads, or a label that the
            network does not have.
        UsageError: the dataset has no frames, and the network requires some.
    """
    facts = network.dataset
    if facts is None:
        msg = "The network has no record of the dataset that it was trained on."
        raise AvdataError(msg, hint="use a checkpoint that `snnergy train` wrote")
    video_channels(data, network.config.fusion)
    facts.check_settings(DatasetFacts.of(data.info), tuple(network.encoders))
    return facts, facts.label_map(data.labels)


def recalibrate_batch_norm(
    network: nn.Module,
    data: AVDataset,
    batch_size: int,
    device: torch.device | str,
    mel: MelTransform | None = None,
) -> None:
    """Recalibrate batch norms on the train split; otherwise a network after few steps is silent.

    The batches are the first ones of epoch 0, without augmentation, so that a resumed run uses the same. A
    partial last batch is dropped: it would count as much as a full one, and may have one sample.
    """
    data.set_epoch(0)
    has_full_batch = data.num_samples >= batch_size * data.world_size
    loader = data.loader(batch_size, num_workers=0, drop_last=has_full_batch)
    recalibrate(network, audio_video_batches(loader, CALIBRATION_BATCHES, device, mel))


@torch.no_grad()
def evaluate_split(
    network: nn.Module,
    loader: AVLoader,
    labels: Sequence[str],
    device: torch.device | str,
    *,
    mel: MelTransform | None = None,
    label_map: Tensor | None = None,
    synchronize: bool = False,
    rates: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return accuracy, loss, metrics of each class and confusion matrix of a network on a split.

    Args:
        network: network with recalibrated batch norms.
        loader: loader of this process's part of the split.
        labels: names of the network's classes, in order.
        device: device of the network.
        mel: module on the device, from `mel_transform`; None: the mels of the loader.
        label_map: the network's class of each label of the split, from `match_dataset`; None: they are equal.
        synchronize: sum over all processes; all of them must call this function.
        rates: filled with the firing rates of the first batch.

    Returns:
        `accuracy`, `loss`, `samples`, `per_class` (for each label `samples`, `precision`, `recall` and `f1`;
        None if undefined), `confusion` (rows: true labels).
    """
    from torchmetrics import MeanMetric  # noqa: PLC0415  # slow import

    network.eval()
    metrics = _metrics(len(labels), synchronize=synchronize).to(device)
    mean_loss = MeanMetric(nan_strategy="disable", sync_on_compute=synchronize).to(device)
    mean_loss.set_dtype(torch.float64)
    for number, batch in enumerate(loader):
        inputs = to_device(batch, device, mel)
        if number == 0 and rates is not None:
            with record_firing_rates(network) as measured_rates:
                logits = network(inputs.audio, inputs.video)
            rates.update(measured_rates)
        else:
            logits = network(inputs.audio, inputs.video)
        real = inputs.weight > 0
        label = inputs.label if label_map is None else label_map.to(device)[inputs.label]
        losses = functional.cross_entropy(logits.float(), label, reduction="none")
        mean_loss.update(losses[real])
        metrics.update(logits, label.where(real, PADDING))
    return _summarize(metrics.compute(), float(mean_loss.compute()), labels)


def _metrics(count: int, *, synchronize: bool) -> MetricCollection:
    """Return metrics of `count` classes, whose states are integers: their sum over processes is exact."""
    from torchmetrics import MetricCollection, classification  # noqa: PLC0415

    options: dict[str, Any] = {
        "num_classes": count, "ignore_index": PADDING, "validate_args": False, "sync_on_compute": synchronize,
    }  # fmt: skip
    by_class = {**options, "average": "none"}
    return MetricCollection(
        {
            "confusion": classification.MulticlassConfusionMatrix(**options),
            "accuracy": classification.MulticlassAccuracy(**options, average="micro"),
            "precision": classification.MulticlassPrecision(**by_class),
            "recall": classification.MulticlassRecall(**by_class),
            "f1": classification.MulticlassF1Score(**by_class),
        },
        compute_groups=[["confusion"], ["accuracy"], ["precision", "recall", "f1"]],
    )


def _summarize(measured: Mapping[str, Tensor], loss: float, labels: Sequence[str]) -> dict[str, Any]:
    # torchmetrics drops the dimensions of a single class.
    confusion = measured["confusion"].view(len(labels), -1)
    support, predicted = confusion.sum(1), confusion.sum(0)
    # torchmetrics returns 0 if there is nothing to divide by.
    is_defined = {"precision": predicted > 0, "recall": support > 0, "f1": support + predicted > 0}
    columns: dict[str, list[float | None]] = {
        name: [
            round(value, 6) if is_valid else None
            for value, is_valid in zip(measured[name].view(-1).tolist(), valid.tolist(), strict=True)
        ]
        for name, valid in is_defined.items()
    }
    columns["samples"] = support.tolist()
    return {
        "accuracy": round(float(measured["accuracy"]), 6),
        "loss": round(loss, 6),
        "samples": int(support.sum()),
        "per_class": {
            label: {name: columns[name][index] for name in CLASS_METRICS}
            for index, label in enumerate(labels)
        },
        "confusion": confusion.tolist(),
    }


CLASS_METRICS = ("samples", "precision", "recall", "f1")

CLASS_COLUMNS = ("label", *CLASS_METRICS)


def class_table(measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of label, samples, precision, recall and F1; `–` if undefined.

    >>> class_table({"per_class": {"a": {"samples": 4, "precision": 1.0, "recall": 0.75, "f1": None}}})
    [('a', '4', '1.0000', '0.7500', '–')]
    """
    return [
        (label, *(_format(row[name]) for name in CLASS_METRICS))
        for label, row in measured["per_class"].items()
    ]


def _format(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def write_classes(path: Path, measured: Mapping[str, Any]) -> None:
    """Write the table of `class_table` as CSV."""
    with path.open("w", newline="", encoding="utf-8") as lines:
        rows = ([escape_controls(cell) for cell in row] for row in class_table(measured))
        csv.writer(lines, lineterminator="\n").writerows([CLASS_COLUMNS, *rows])
