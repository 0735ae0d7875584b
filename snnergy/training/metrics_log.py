"""The log of a run: metrics.csv, and the same for TensorBoard; both go on without a seam.

metrics.csv holds no times, so an interrupted run that went on leaves the same bytes as one that was not.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "lr", "train_loss", "grad_norm", "val_loss", "val_accuracy")


class MetricsLog:
    """Writes one row for each moment that has something to tell."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Begin, or go on from `step`: what was logged later was of steps that are made again."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # takes a while to import

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.csv"
        keep = _rows_until(self.path, step) if step else []
        with self.path.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(keep)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def row(self, **values: Any) -> None:
        """Append a row; columns that are not given stay empty."""
        with self.path.open("a", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
            writer.writerow({name: _shown(value) for name, value in values.items()})
        for name, value in values.items():
            if name not in {"step", "epoch"}:
                self._board.add_scalar(name.replace("_", "/", 1), value, values["step"])

    def rates(self, rates: Mapping[str, float], step: int) -> None:
        """Firing rates of the layers, for TensorBoard alone."""
        for name, rate in rates.items():
            self._board.add_scalar(f"rate/{name}", rate, step)

    def flush(self) -> None:
        """Have all of it on disk."""
        self._board.flush()

    def close(self) -> None:
        """End the log."""
        self._board.close()


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        # The last line of a killed run may be cut short.
        return [
            {name: row[name] or "" for name in COLUMNS}
            for row in csv.DictReader(lines)
            if None not in row.values() and row["step"].isdigit() and int(row["step"]) <= step
        ]
