"""Evaluation of a network: every sample of a split counted once, over all processes."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from avdata.errors import AvdataError, escape_controls
from avdata.streaming.dataset import AVDataset
from avdata.streaming.loader import AVLoader
from snnergy.data import (
    MelTransform,
    audio_video_batches,
    mel_transform,
    open_any_split,
    open_split,
    to_device,
    video_channels,
)
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.inputs import NonFiniteInputError
from snnergy.models.network import SNNergy, recalibrate
from snnergy.training.checkpoint import load_all
from snnergy.training.diagnostics import record_firing_rates
from snnergy.training.distributed import Device, select_device
from snnergy.training.predictions import Predictions, write_predictions
from snnergy.training.targets import class_names, flatten_targets, target_loss

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
        raise AvdataError(msg, hint="Use a checkpoint that `snnergy train` wrote")
    video_channels(data, network.config.fusion)
    facts.check_settings(DatasetFacts.of(data.info), network.modalities)
    if facts.per_step and not data.info["background"]:
        msg = f"Dataset does not match the network: it has no labels of steps ({data.name})."
        raise AvdataError(msg, hint="Use a dataset with the labels of the training set")
    return facts, facts.label_map(class_names(data.info, per_step=facts.per_step))


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


def evaluate(
    checkpoint: str | Path,
    dataset: str | Path,
    *,
    device: Device = "auto",
    predictions: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on the validation and test splits of a prepared dataset.

    Mels come from the same source as in the training and are normalized with the statistics of the training
    set. Labels are matched by name. Batch norm statistics come from the checkpoint. A checkpoint saved within
    an epoch has no valid ones; it is first recalibrated on the train split of the dataset.

    Args:
        checkpoint: `best.ckpt` or `last.ckpt` in the folder of a run.
        dataset: folder or URL of the prepared dataset.
        device: `auto` uses a GPU if there is one.
        predictions: CSV file to write, with the probabilities of each sample; None: none.

    Returns:
        `labels`, `num_classes`, and for each split the result of `evaluate_split`.
    """
    place = torch.device(select_device(device))
    network, config, calibrated = load_all(checkpoint)
    options: dict[str, Any] = {"features": config.features, "rank": 0, "world_size": 1}
    data = open_any_split(dataset, ("val", "test", "train"), **options)
    facts, label_map = match_dataset(network, data)
    network.to(place)
    mel = mel_transform(data, place, facts)
    if not calibrated:
        train_data = open_split(dataset, "train", shuffle=True, seed=config.seed, **options)
        recalibrate_batch_norm(network, train_data, config.batch_size, place, mel)
    measured, kept = {}, {split: Predictions() for split in ("val", "test") if split in data.info["splits"]}
    for split, samples in kept.items():
        data = open_split(dataset, split, **options)
        loader = data.loader(min(config.batch_size, len(data)), num_workers=0)
        measured[split] = evaluate_split(
            network, loader, facts.labels, place, mel=mel, label_map=label_map, per_step=facts.per_step,
            predictions=samples,
        )  # fmt: skip
    if predictions is not None:
        write_predictions(Path(predictions), kept, facts.labels)
    return {"labels": list(facts.labels), "num_classes": len(facts.labels), **measured}


@torch.no_grad()
def evaluate_split(
    network: nn.Module,
    loader: AVLoader,
    labels: Sequence[str],
    device: torch.device | str,
    *,
    mel: MelTransform | None = None,
    label_map: Tensor | None = None,
    per_step: bool = False,
    synchronize: bool = False,
    rates: dict[str, float] | None = None,
    predictions: Predictions | None = None,
) -> dict[str, Any]:
    """Return accuracy, loss, metrics of each class and confusion matrix of a network on a split.

    Args:
        network: network with recalibrated batch norms.
        loader: loader of this process's part of the split.
        labels: names of the network's classes, in order.
        device: device of the network.
        mel: module on the device, from `mel_transform`; None: the mels of the loader.
        label_map: the network's class of each label of the split, from `match_dataset`; None: they are equal.
        per_step: classify each step, with the labels of the steps.
        synchronize: sum over all processes; all of them must call this function.
        rates: filled with the firing rates of the first batch.
        predictions: filled with the predictions of all samples.

    Returns:
        `accuracy`, `macro_f1` (mean F1 of the labels that occur or are predicted), `uar` (unweighted average
        recall of the labels that occur), `loss`, `samples`, `per_class` (for each label `samples`,
        `precision`, `recall` and `f1`; None if undefined), `confusion` (rows: true labels). With `per_step`
        all of them count steps.

    Raises:
        AvdataError: a sample has NaN or infinite values.
    """
    from torchmetrics import MeanMetric  # noqa: PLC0415  # slow import

    network.eval()
    options: dict[str, Any] = {"per_step": True} if per_step else {}
    metrics = _metrics(len(labels), synchronize=synchronize).to(device)
    mean_loss = MeanMetric(nan_strategy="disable", sync_on_compute=synchronize).to(device)
    mean_loss.set_dtype(torch.float64)
    for number, batch in enumerate(loader):
        inputs = to_device(batch, device, mel, per_step=per_step)
        with _named_samples(batch.key):
            if number == 0 and rates is not None:
                with record_firing_rates(network) as measured_rates:
                    logits = network(**inputs.arguments, **options)
                rates.update(measured_rates)
            else:
                logits = network(**inputs.arguments, **options)
        real = inputs.weight > 0
        label = inputs.label if label_map is None else label_map.to(device)[inputs.label]
        mean_loss.update(target_loss(logits, label)[real])
        padded = label.where(real if label.dim() == 1 else real[:, None], PADDING)
        metrics.update(*flatten_targets(logits, padded))
        if predictions is not None:
            predictions.add(batch.key, label, logits, real)
    if predictions is not None and synchronize:
        predictions.gather()
    return _summarize(metrics.compute(), float(mean_loss.compute()), labels)


@contextmanager
def _named_samples(keys: Sequence[str]) -> Iterator[None]:
    """Name the samples whose input is not finite."""
    try:
        yield
    except NonFiniteInputError as error:
        named = ", ".join(keys[number] for number in error.samples[:5])
        msg = f"NaN or infinite values in {error.modality} of {len(error.samples)} samples: {named}."
        raise AvdataError(msg, hint="Check the dataset with avdata verify, then prepare it again") from error


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
        "macro_f1": _mean(columns["f1"]),
        "uar": _mean(columns["recall"]),
        "loss": round(loss, 6),
        "samples": int(support.sum()),
        "per_class": {
            label: {name: columns[name][index] for name in CLASS_METRICS}
            for index, label in enumerate(labels)
        },
        "confusion": confusion.tolist(),
    }


def _mean(values: Sequence[float | None]) -> float:
    return round(statistics.fmean([value for value in values if value is not None] or [0.0]), 6)


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
