"""Comparison of training runs: results, settings that differ, curves and recall of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdata.errors import UsageError
from avdata.reporting.charts import Chart, lines
from snnergy.analysis.run_results import Metrics, Run, describe_settings, flatten, read_run

MAX_RUNS = 8
"""Number of colors that are distinguished in a chart."""

CURVES = {
    "Accuracy on the validation split": ("val_accuracy", "share of samples"),
    "Loss on the validation split": ("val_loss", "cross-entropy"),
    "Loss on the train split": ("train_loss", "cross-entropy"),
}
"""Charts by title: column of metrics.csv and title of the y axis."""


@dataclass(frozen=True)
class ComparedRun:
    """Run in a comparison.

    Attributes:
        name: unique name.
        run: the run.
        metrics: metrics on the split that all runs have, or None.
        change: accuracy minus that of the first run, or None.
    """

    name: str
    run: Run
    metrics: Metrics | None
    change: float | None


def collect_comparison(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the variables of the template that compares runs.

    Args:
        folders: folders of the runs; the first one is the reference.

    Raises:
        UsageError: more than `MAX_RUNS` runs.
        AvdataError: a folder contains no run.
    """
    if len(folders) > MAX_RUNS:
        msg = f"Cannot compare {len(folders)} runs: the maximum is {MAX_RUNS}."
        raise UsageError(msg, hint="Name fewer runs; snnergy compare summarizes seeds in a table")
    runs = [read_run(folder) for folder in folders]
    compared = _compare(runs, _unique_names(folders))
    first = compared[0]
    labels = first.run.labels
    same_labels = [entry for entry in compared if entry.metrics and entry.run.labels == labels]
    return {
        "runs": compared,
        "split": first.metrics.split if first.metrics else None,
        "has_energy": any(run.energy for run in runs),
        "same_dataset": len({run.dataset for run in runs}) == 1,
        "settings": _different_settings(runs),
        "descriptions": describe_settings(),
        "charts": _curves(compared),
        "labels": labels,
        "class_runs": same_labels,
    }


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """Return names of folders, or their paths if two names are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _compare(runs: Sequence[Run], names: Sequence[str]) -> list[ComparedRun]:
    # Accuracies of different splits must not stand side by side.
    splits = [{metrics.split: metrics for metrics in run.metrics} for run in runs]
    shared = next((name for name in ("test", "val") if all(name in split for split in splits if split)), None)
    measured = [split.get(shared) if shared else None for split in splits]
    reference = measured[0]
    return [
        ComparedRun(
            name, run, metrics, metrics.accuracy - reference.accuracy if metrics and reference else None
        )
        for name, run, metrics in zip(names, runs, measured, strict=True)
    ]


def _different_settings(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Return (setting, value of each run) for settings that are not equal in all runs."""
    flat = [
        {"dataset": run.dataset, **flatten(run.settings), **flatten(run.model, "network.")} for run in runs
    ]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = {name: [settings.get(name) for settings in flat] for name in names}
    return [
        (name, values)
        for name, values in rows.items()
        # The network repeats settings of the training, such as the fusion.
        if any(value != values[0] for value in values)
        and not (name.startswith("network.") and rows.get(name.removeprefix("network.")) == values)
    ]


def _curves(compared: Sequence[ComparedRun]) -> list[Chart]:
    charts = []
    for title, (column, y_title) in CURVES.items():
        series = {entry.name: entry.run.points[column] for entry in compared if column in entry.run.points}
        limits = {"low": 0.0, "high": 1.0} if column == "val_accuracy" else {}
        chart = lines(title, ("optimizer step", y_title), series, **limits)
        charts += [chart] if chart else []
    return charts
