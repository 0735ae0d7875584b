from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import snnergy
from avdata.errors import AvdataError
from snnergy.training.evaluation import class_table, evaluate_split, write_classes
from snnergy.training.predictions import Predictions, write_predictions

LABELS = ["a", "b", "never predicted", "absent"]


class Given(torch.nn.Module):
    """Network that returns the first four values of each sample's mel as logits."""

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        return audio[0, :, 0, 0, : len(LABELS)]


def loader(logits: Tensor, label: Tensor, weight: Tensor, size: int) -> Iterator[SimpleNamespace]:
    for rows in torch.arange(len(label)).split(size):
        mel = torch.zeros(len(rows), 2, 1, 16, 16)
        mel[:, 0, 0, 0, : len(LABELS)] = logits[rows]
        frames = torch.zeros(len(rows), 2, 3, 16, 16, dtype=torch.uint8)
        yield SimpleNamespace(
            mel=mel, frames=frames, label=label[rows], weight=weight[rows],
            key=[f"k{number}" for number in rows.tolist()],
            present=torch.ones(len(rows), 2, dtype=torch.bool),
        )  # fmt: skip


def measured(
    size: int, predictions: Predictions | None = None
) -> tuple[dict[str, Any], Tensor, Tensor]:  # fmt: skip
    """Return the evaluation of 61 samples, of which the last 11 are padding, and the others with labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(61, len(LABELS), generator=generator)
    logits[:, 2] = -9
    label, weight = torch.randint(0, 3, (61,), generator=generator), torch.ones(61)
    weight[50:] = 0
    rows: Any = loader(logits, label, weight, size)
    found = evaluate_split(Given(), rows, LABELS, "cpu", predictions=predictions)
    return found, logits[:50], label[:50]


@pytest.mark.parametrize("size", [61, 10])
def test_evaluate_split_equals_scikit_learn_without_padding(size: int) -> None:
    from sklearn import metrics

    found, logits, label = measured(size)
    true, predicted, classes = label.numpy(), logits.argmax(1).numpy(), range(len(LABELS))
    assert found["samples"] == 50
    assert found["confusion"] == metrics.confusion_matrix(true, predicted, labels=classes).tolist()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-6)
    shares = logits.double().softmax(1).numpy()
    assert found["loss"] == pytest.approx(metrics.log_loss(true, shares, labels=classes), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"), abs=1e-6)
    assert found["uar"] == pytest.approx(metrics.balanced_accuracy_score(true, predicted), abs=1e-6)
    columns = metrics.precision_recall_fscore_support(
        true, predicted, labels=classes, zero_division=float("nan")
    )
    for name, expected in zip(("precision", "recall", "f1", "samples"), columns, strict=True):
        values = [row[name] for row in found["per_class"].values()]
        assert [float("nan") if value is None else value for value in values] == pytest.approx(
            expected.tolist(), abs=1e-6, nan_ok=True
        )


def test_undefined_metrics_are_none_and_shown_as_dash(tmp_path: Path) -> None:
    found, _, label = measured(10)
    rows = found["per_class"]
    assert rows["never predicted"]["precision"] is None
    assert rows["never predicted"]["recall"] == 0.0
    assert rows["absent"]["recall"] is None
    shown = {row[0]: row[1:] for row in class_table(found)}
    assert shown["never predicted"][:3] == (str(int((label == 2).sum())), "–", "0.0000")
    write_classes(tmp_path / "classes.csv", found)
    with (tmp_path / "classes.csv").open(encoding="utf-8") as lines:
        header, *written = csv.reader(lines)
    assert header == ["label", "samples", "precision", "recall", "f1"]
    assert {row[0]: tuple(row[1:]) for row in written} == shown


def test_evaluate_split_of_one_class() -> None:
    rows = loader(torch.ones(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3), 2)
    found = evaluate_split(OneLogit(), rows, ["a"], "cpu")  # type: ignore[arg-type]
    assert (found["accuracy"], found["confusion"]) == (1.0, [[3]])


class OneLogit(Given):
    """Network of one class."""

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        return super().forward(audio, video)[:, :1]


def test_predictions_have_every_sample_once_without_padding(tmp_path: Path) -> None:
    predictions = Predictions()
    _, logits, label = measured(10, predictions)
    write_predictions(tmp_path / "predictions.csv", {"test": predictions}, LABELS)
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as lines:
        rows = {row["key"]: row for row in csv.DictReader(lines)}
    assert list(rows) == sorted(f"k{number}" for number in range(50))
    shares = logits.double().softmax(1)
    for number in range(50):
        row = rows[f"k{number}"]
        assert (row["split"], row["label"]) == ("test", LABELS[label[number]])
        assert row["predicted"] == LABELS[logits[number].argmax()]
        assert float(row["probability"]) == pytest.approx(float(shares[number].max()), abs=1e-6)
        assert [float(row[name]) for name in LABELS] == pytest.approx(shares[number].tolist(), abs=1e-6)


def test_evaluate_split_names_samples_that_are_not_finite() -> None:
    logits = torch.zeros(5, len(LABELS))
    logits[3, 0] = torch.nan
    rows = loader(logits, torch.zeros(5, dtype=torch.int64), torch.ones(5), 2)
    network = snnergy.build("nano", num_classes=len(LABELS))
    with pytest.raises(AvdataError, match=r"audio of 1 samples: k3\."):
        evaluate_split(network, rows, LABELS, "cpu")  # type: ignore[arg-type]
