"""Log of a run: metrics.csv, rates.csv, TensorBoard events and a logger of Lightning.

All continue after a resume. The CSV files contain no times, so that a resumed run writes the same bytes as
an uninterrupted one.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError, UsageError, error_message

COLUMNS = ("step", "epoch", "lr", "train_loss", "grad_norm", "val_loss", "val_accuracy")


LOGGER_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""Package that a logger of Lightning requires, and extra that installs it."""


RUN_ID_FILE = "logger_run_id"
"""File in the folder of a run with the name that `wandb` or `mlflow` gave it."""


def check_logger(name: str) -> None:
    """Raise unless the package of a logger is installed.

    Raises:
        UsageError: it is not.
    """
    package = LOGGER_PACKAGES.get(name)
    if package and find_spec(package) is None:
        msg = f"Logger {name} requires the package {package}, which is not installed."
        raise UsageError(msg, hint=f"Run: pip install 'avdata[{name}]'")


def open_logger(name: str, folder: Path, *, resume: bool = False) -> Any:
    """Return a logger of Lightning for a run, or None for `none`.

    `csv` writes to `csv/` in the folder of the run. `wandb` and `mlflow` read their own variables of the
    environment, such as WANDB_MODE and MLFLOW_TRACKING_URI; by default, mlflow writes to `mlflow.db` there.

    Args:
        name: one of the loggers.
        folder: folder of the run.
        resume: continue the run of the logger that the folder names.

    Raises:
        UsageError: the package of the logger is not installed.
        AvdataError: the logger cannot be opened, for example because its server does not respond.
    """
    check_logger(name)
    if name == "csv":
        from lightning.fabric.loggers.csv_logs import CSVLogger  # noqa: PLC0415

        return CSVLogger(str(folder), name="csv", flush_logs_every_n_steps=1)
    if name == "none":
        return None
    stored = folder / RUN_ID_FILE
    run_id = stored.read_text(encoding="utf-8").strip() if resume and stored.is_file() else None
    try:
        logger, opened_id = (_open_wandb if name == "wandb" else _open_mlflow)(folder, run_id)
    except Exception as error:  # of the package, whose types it does not document
        msg = f"Cannot open the logger {name}: {error_message(error).splitlines()[0]}"
        raise AvdataError(msg, hint=f"Check its server and login, or omit --logger {name}") from error
    stored.write_text(f"{opened_id}\n", encoding="utf-8")
    return logger


def _open_wandb(folder: Path, run_id: str | None) -> tuple[Any, str]:
    from lightning.pytorch.loggers.wandb import WandbLogger  # noqa: PLC0415

    options: dict[str, Any] = {} if run_id is None else {"id": run_id, "resume": "allow"}
    logger = WandbLogger(project="snnergy", name=folder.name, save_dir=str(folder), **options)
    return logger, logger.experiment.id


def _open_mlflow(folder: Path, run_id: str | None) -> tuple[Any, str]:
    from lightning.pytorch.loggers.mlflow import MLFlowLogger  # noqa: PLC0415

    server = os.environ.get("MLFLOW_TRACKING_URI")
    # mlflow 3 refuses to write to files.
    place = folder.resolve()
    logger = MLFlowLogger(
        "snnergy",
        run_name=folder.name,
        run_id=run_id,
        tracking_uri=server or f"sqlite:///{(place / 'mlflow.db').as_posix()}",
        artifact_location=None if server else (place / "mlartifacts").as_uri(),
    )
    assert logger.run_id is not None
    return logger, logger.run_id


class MetricsLog:
    """Writer of metrics.csv, rates.csv (firing rates), TensorBoard scalars and a logger of Lightning.

    Args:
        folder: folder of the run.
        step: step to resume from; rows of later steps are removed.
        logger: name for `open_logger`.
        settings: settings of the run, for the logger.
    """

    def __init__(
        self, folder: Path, step: int = 0, logger: str = "none", settings: Mapping[str, Any] | None = None
    ) -> None:
        """Open the log, without the rows after `step`, which the resumed run repeats."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # slow import

        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.rates_path = folder / "metrics.csv", folder / "rates.csv"
        for path, columns in ((self.path, COLUMNS), (self.rates_path, _columns(self.rates_path))):
            rows = _rows_until(path, step, columns) if step else []
            _write_rows(path, columns, rows) if path == self.path or rows else path.unlink(missing_ok=True)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._logger = open_logger(logger, folder, resume=step > 0)
        # A table of metrics has no place for settings; a resumed run has them.
        if self._logger is not None and logger != "csv" and step == 0:
            self._logger.log_hyperparams(dict(settings or {}))

    def row(self, **values: Any) -> None:
        """Append a row; columns without a value stay empty."""
        _append_row(self.path, COLUMNS, values)
        self.scalars(values["step"], **{name: value for name, value in values.items() if name != "step"})

    def scalars(self, step: int, **values: float) -> None:
        """Write values to TensorBoard and the logger only: those that a resumed run does not repeat."""
        for name, value in values.items():
            if name != "epoch":
                self._board.add_scalar(name.replace("_", "/", 1), value, step)
        if self._logger is not None:
            self._logger.log_metrics({name: float(value) for name, value in values.items()}, step)

    def rates(self, rates: Mapping[str, float], step: int) -> None:
        """Write the firing rates of the layers to rates.csv and TensorBoard."""
        columns = ("step", *rates)
        if rates:
            if not self.rates_path.is_file():
                _write_rows(self.rates_path, columns, [])
            _append_row(self.rates_path, columns, {"step": step, **rates})
        for name, rate in rates.items():
            self._board.add_scalar(f"rate/{name}", rate, step)

    def flush(self) -> None:
        """Write buffered TensorBoard events to disk."""
        self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard writer and the logger."""
        self._board.close()
        if self._logger is not None:
            self._logger.finalize("success")


def _format(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _append_row(path: Path, columns: Sequence[str], values: Mapping[str, Any]) -> None:
    with path.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns, lineterminator="\n")
        writer.writerow({name: _format(value) for name, value in values.items()})


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _columns(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return next(csv.reader(lines), [])


def _rows_until(path: Path, step: int, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        # The last line of a killed run may be incomplete.
        return [
            {name: row[name] or "" for name in columns}
            for row in csv.DictReader(lines)
            if None not in row.values() and row["step"].isdigit() and int(row["step"]) <= step
        ]
