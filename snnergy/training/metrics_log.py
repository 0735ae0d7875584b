"""Log of a run: metrics.csv and TensorBoard events. Both continue after a resume.

metrics.csv contains no times, so that a resumed run writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "lr", "train_loss", "grad_norm", "val_loss", "val_accuracy")


class MetricsLog:
    """Writer of the rows of metrics.csv and of TensorBoard scalars.

    Args:
        folder: folder of the run.
        step: step to resume from; rows of later steps are removed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Open the log, without the rows after `step`, which the resumed run repeats."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # slow import

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.csv"
        rows = _rows_until(self.path, step) if step else []
        with self.path.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def row(self, **values: Any) -> None:
        """Append a row; columns without a value stay empty."""
        with self.path.open("a", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
            writer.writerow({name: _format(value) for name, value in values.items()})
        for name, value in values.items():
            if name not in {"step", "epoch"}:
                self._board.add_scalar(name.replace("_", "/", 1), value, values["step"])

    def rates(self, rates: Mapping[str, float], step: int) -> None:
        """Write the firing rates of the layers to TensorBoard only."""
        for name, rate in rates.items():
            self._board.add_scalar(f"rate/{name}", rate, step)

    def flush(self) -> None:
        """Write buffered TensorBoard events to disk."""
        self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard writer."""
        self._board.close()


def _format(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        # The last line of a killed run may be incomplete.
        return [
            {name: row[name] or "" for name in COLUMNS}
            for row in csv.DictReader(lines)
            if None not in row.values() and row["step"].isdigit() and int(row["step"]) <= step
        ]
