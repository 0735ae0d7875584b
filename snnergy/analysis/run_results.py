"""Results of a training run as its report shows them, read from run.json, result.json and metrics.csv."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from avdata.config.overrides import diff_settings
from avdata.errors import AvdataError, redact_url
from snnergy.fusion.registry import FUSIONS
from snnergy.training.config import TRAIN_PRESETS, AugmentConfig, TrainConfig, resolve_config

CONFIDENCE_Z = 1.959964
"""Quantile of the normal distribution for an interval of 95 %."""

MAX_SIBLINGS = 64
"""Folders beside a run in which its baseline is looked for."""

NOT_SETTINGS = frozenset({"model", "dataset", "facts", "processes"})
"""Keys of a run.json without `config` that are no settings."""

Points = Mapping[str, Sequence[tuple[float, float]]]


class Setting(NamedTuple):
    """Setting that differs from the training preset."""

    name: str
    default: Any
    value: Any


@dataclass(frozen=True)
class Metrics:
    """Metrics of a run on one split.

    Attributes:
        split: `test` or `val`.
        accuracy: share of correct samples.
        interval: 95 % confidence interval of the accuracy, for independent samples.
        loss: mean cross-entropy.
        samples: number of samples.
        macro_f1: mean F1 of the classes with samples; None if no class has samples.
        recall: mean recall of the classes with samples (UAR); None if no class has samples.
        per_class: samples, precision, recall and F1 by label.
        confusion: counts; rows are true labels.
    """

    split: str
    accuracy: float
    interval: tuple[float, float]
    loss: float
    samples: int
    macro_f1: float | None
    recall: float | None
    per_class: Mapping[str, Mapping[str, Any]]
    confusion: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Run:
    """Training run.

    Attributes:
        folder: folder of the run.
        dataset: path or URL of the dataset, without secrets.
        settings: resolved settings, nested.
        model: resolved settings of the network.
        result: content of result.json; empty for an unfinished run.
        metrics: metrics of the evaluated splits, test before val.
        points: points (step, value) of each column of metrics.csv.
        energy: totals of `snnergy energy`, such as `sops_exact`; empty if it was not run.
    """

    folder: Path
    dataset: str
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: tuple[Metrics, ...]
    points: Points
    energy: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def labels(self) -> list[str]:
        """Label names in order; empty for an unfinished run."""
        return list(self.result.get("labels", ()))

    @property
    def headline(self) -> Metrics | None:
        """Metrics on the test split, else on the validation split."""
        return self.metrics[0] if self.metrics else None

    @property
    def fusion(self) -> str:
        """Name of the fusion, or `unknown`."""
        return str(self.settings.get("fusion", "unknown"))

    @property
    def is_artificial(self) -> bool:
        """Whether the network is an artificial one, without spikes."""
        spec = FUSIONS.get(self.fusion)
        return spec is not None and spec.artificial


def read_run(folder: Path) -> Run:
    """Read a run. One that was stopped has no results.

    Raises:
        AvdataError: the folder contains no run, or a file cannot be read.
    """
    stored = _read(folder / "run.json")
    result = _read(folder / "result.json", missing={})
    measured = [
        read_metrics(name, result[name]) for name in ("test", "val") if isinstance(result.get(name), Mapping)
    ]
    return Run(
        folder=folder,
        dataset=redact_url(stored.get("dataset", "unknown")),
        settings=stored.get("config") or {k: v for k, v in stored.items() if k not in NOT_SETTINGS},
        model=stored.get("model") or {},
        result=result,
        metrics=tuple(measured),
        points=read_points(folder / "metrics.csv"),
        energy=_read(folder / "energy.json", missing={}),
    )


def _read(path: Path, missing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if missing is not None:
            return dict(missing)
        msg = f"No run in {path.parent}: {path.name} is missing."
        raise AvdataError(msg, hint="Use the --output folder of `snnergy train`") from error
    except (OSError, ValueError, RecursionError) as error:
        msg = f"Cannot read {path}: {error}."
        raise AvdataError(msg) from error
    if not isinstance(content, dict):
        msg = f"Cannot read {path}: no JSON object."
        raise AvdataError(msg)
    return content


def read_metrics(split: str, values: Mapping[str, Any]) -> Metrics:
    """Return the metrics of one split from result.json."""
    classes = [row for row in values["per_class"].values() if row["samples"]]
    return Metrics(
        split=split,
        accuracy=values["accuracy"],
        interval=wilson_interval(values["accuracy"], values["samples"]),
        loss=values["loss"],
        samples=values["samples"],
        macro_f1=_mean([row["f1"] or 0.0 for row in classes]),
        recall=_mean([row["recall"] or 0.0 for row in classes]),
        per_class=values["per_class"],
        confusion=values["confusion"],
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of independent samples (Wilson 1927).

    Unlike the normal approximation it stays within 0 and 1, and is valid for few samples.

    >>> [round(limit, 3) for limit in wilson_interval(0.9, 50)]
    [0.786, 0.957]
    """
    if not samples:
        return 0.0, 1.0
    square = CONFIDENCE_Z**2 / samples
    center = (share + square / 2) / (1 + square)
    half = CONFIDENCE_Z * math.sqrt(share * (1 - share) / samples + square / samples / 4) / (1 + square)
    return max(0.0, center - half), min(1.0, center + half)


def read_points(metrics: Path) -> Points:
    """Return the points (step, value) of each column of a CSV log; empty if the file does not exist."""
    points: dict[str, list[tuple[float, float]]] = {}
    if not metrics.is_file():
        return points
    with metrics.open(newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            for name, value in row.items():
                # The last line of a killed run may be incomplete.
                if name and name != "step" and value and (row.get("step") or "").isdigit():
                    points.setdefault(name, []).append((float(row["step"]), float(value)))
    return points


def preset_changes(run: Run) -> list[Setting]:
    """Return the settings that differ from the run's training preset."""
    preset = run.settings.get("train_preset")
    if preset not in TRAIN_PRESETS:
        return []
    defaults = resolve_config(str(preset)).model_dump(mode="json")
    known = {name: value for name, value in run.settings.items() if name in defaults}
    return [Setting(*row) for row in diff_settings({name: defaults[name] for name in known}, known)]


def describe_settings() -> dict[str, str]:
    """Return the description of each training setting, with its unit."""
    groups = (("", TrainConfig), ("augment.", AugmentConfig))
    return {
        f"{prefix}{name}": (setting.description or "").removesuffix("; see below")
        for prefix, group in groups
        for name, setting in group.model_fields.items()
    }


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name.

    >>> flatten({"lr": 1, "augment": {"flip": 0.5}})
    {'lr': 1, 'augment.flip': 0.5}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def find_baseline(run: Run) -> Run | None:
    """Return the best artificial network beside a run, trained on the same dataset with the same seed.

    `snnergy compare` writes all runs into one folder.
    """
    if run.is_artificial or run.headline is None:
        return None
    parent = run.folder.resolve().parent
    folders = sorted(path.parent for path in parent.glob("*/result.json"))[:MAX_SIBLINGS]
    found = []
    for folder in folders:
        try:
            other = read_run(folder)
        except (AvdataError, KeyError, TypeError, ValueError):
            # A damaged neighbor is no reason to refuse this run's report.
            continue
        is_same_task = other.dataset == run.dataset and other.labels == run.labels
        if other.is_artificial and is_same_task and other.settings.get("seed") == run.settings.get("seed"):
            found.append(other)
    matching = [other for other in found if other.headline and other.headline.split == run.headline.split]
    return max(matching, key=lambda other: other.metrics[0].accuracy, default=None)
