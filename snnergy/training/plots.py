"""Plots of training runs: curves, confusion matrix, and comparison of fusions."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

MAX_NAMED_LABELS = 80
"""Maximum number of labels for which a confusion matrix shows names and counts."""


def plot_curves(metrics: Path, path: Path) -> None:
    """Plot loss and accuracy by step from a run's metrics.csv."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    with metrics.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axis, names in ((loss, ("train_loss", "val_loss")), (accuracy, ("val_accuracy",))):
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=name.replace("_", " "),
                    marker="." if len(points) < 40 else "",
                )
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    accuracy.set_ylim(0, 1.02)
    figure.savefig(path, dpi=110)


def plot_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Plot a confusion matrix: rows are true labels, columns predicted labels.

    Colors show shares of the true label. With more than `MAX_NAMED_LABELS` labels the axes show their
    indices, in the order of classes.csv from 0.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    size = max(4.0, 0.45 * min(len(labels), MAX_NAMED_LABELS) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    positions = range(len(labels) if len(labels) <= MAX_NAMED_LABELS else 0)
    if positions:
        axis.set_xticks(positions, labels, rotation=90)
        axis.set_yticks(positions, labels)
    for row in positions:
        for column in positions:
            if confusion[row][column]:
                color = "white" if shares[row][column] > 0.6 else "black"
                axis.text(column, row, str(confusion[row][column]), ha="center", va="center", color=color)
    figure.savefig(path, dpi=110)


def plot_comparison(rows: Sequence[tuple[str, Sequence[float], float]], chance: float, path: Path) -> None:
    """Plot accuracy and energy of each fusion.

    Args:
        rows: name, accuracy of every seed (shown as dots, with mean and standard deviation), and mJ per
            sample.
        chance: accuracy of random guessing.
        path: the PNG file to write.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8.4, 0.42 * len(rows) + 1.3), layout="constrained")
    axis, energy = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for position, (_, accuracy, _) in enumerate(rows):
        deviation = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        axis.errorbar(statistics.fmean(accuracy), position, xerr=deviation, fmt="s", capsize=4, color="C0")
        axis.plot(accuracy, [position] * len(accuracy), "o", color="C1", alpha=0.6, markersize=4)
    axis.axvline(chance, color="gray", linestyle=":", label="chance")
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axis.invert_yaxis()
    axis.set_xlabel("accuracy")
    axis.set_xlim(0, 1.02)
    axis.grid(alpha=0.3, axis="x")
    axis.legend()
    energy.barh(range(len(rows)), [millijoules for *_, millijoules in rows], height=0.5)
    energy.set_xlabel("mJ per sample, arithmetic at 45 nm")
    energy.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)
