from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from avdata.errors import AvdataError, UsageError
from snnergy.training import metrics_log
from snnergy.training.checkpoint import write_json
from snnergy.training.config import TrainConfig
from snnergy.training.epoch_lines import EpochLines
from snnergy.training.trainer import train

Quick = Callable[..., TrainConfig]


class Lines:
    """Callback that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        pass

    def print_line(self, text: str) -> None:
        self.lines.append(text)


def test_training_prints_its_start_and_a_line_per_epoch(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    shown = Lines()
    result = train(tiny_set, tmp_path, quick(steps=6, eval_every=1), device="cpu", progress=shown)
    first, *epochs = shown.lines
    assert first.startswith("starting: 32 samples, 4 steps per epoch")
    assert first.endswith("1 thread; compiling kernels ...")
    number = r"\d\.\d+"
    pattern = (
        rf"epoch (\d)/2, step (\d)/6: loss {number}, train accuracy ({number}), val accuracy ({number}),"
        rf" best ({number}) \(epoch \d\), lr \d\.\d\de-\d\d, \S+ steps/s, \S+ \S+ left"
    )
    found = [re.fullmatch(pattern, line) for line in epochs]
    assert [match and match.groups()[:2] for match in found] == [("1", "4"), ("2", "6")]
    assert float(max(match[4] for match in found if match)) == round(result["best"]["accuracy"], 3)


def test_lines_of_epochs_without_evaluation_are_a_second_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("snnergy.training.epoch_lines.time.monotonic", lambda: clock[0])
    shown = Lines()
    lines = EpochLines(shown, steps=100, epoch_steps=1)
    for step in range(1, 101):
        lines.count(step)
        lines.print(epoch=step - 1, step=step, loss=1, accuracy=0.5, lr=0.1, measured=None, best=None)
        clock[0] += 0.25
    assert [re.findall(r"step (\d+)", line)[0] for line in shown.lines] == [
        *map(str, range(1, 100, 4)), "100",
    ]  # fmt: skip
    assert "4 steps/s, 24 s left" in shown.lines[1]


def test_csv_logger_has_the_metrics_of_metrics_csv(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    train(tiny_set, tmp_path, quick(steps=4, eval_every=1, logger="csv"), device="cpu")
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as lines:
        cells = [(row["step"], name, row[name]) for row in csv.DictReader(lines) for name in row]
    logged = {(step, name): cell for step, name, cell in cells if cell}
    with (tmp_path / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["val_accuracy"] or row["train_loss"]]
    for row in rows:
        for name in ("train_loss", "val_loss", "val_accuracy"):
            if row[name]:
                assert float(logged[row["step"], name]) == pytest.approx(float(row[name]), rel=1e-6)
    assert ("4", "train_accuracy") in logged


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_logger_without_its_package_is_refused_before_the_run_begins(
    tiny_set: Path, tmp_path: Path, quick: Quick, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_log, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=f"Logger {name} requires the package {name}") as raised:
        train(tiny_set, tmp_path / "run", quick(logger=name), device="cpu")
    assert raised.value.hint == f"Run: pip install 'avdata[{name}]'"
    assert not (tmp_path / "run").exists()


class StubMLFlowLogger:
    """Logger of Lightning, without mlflow: it keeps its arguments and metrics."""

    made: list[StubMLFlowLogger]

    def __init__(self, experiment: str, **options: Any) -> None:
        self.experiment_name, self.options = experiment, options
        self.run_id = options["run_id"] or f"run-{len(self.made)}"
        self.settings: list[dict[str, Any]] = []
        self.metrics: list[int] = []
        self.made.append(self)

    def log_hyperparams(self, settings: dict[str, Any]) -> None:
        self.settings.append(settings)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics.append(step)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[StubMLFlowLogger]:
    StubMLFlowLogger.made = []
    monkeypatch.setattr(metrics_log, "find_spec", lambda package: object())
    module = SimpleNamespace(MLFlowLogger=StubMLFlowLogger)
    monkeypatch.setitem(sys.modules, "lightning.pytorch.loggers.mlflow", module)  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return StubMLFlowLogger.made


def test_mlflow_writes_to_a_database_of_the_run_and_resumes_its_run(
    mlflow: list[StubMLFlowLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    log = metrics_log.MetricsLog(folder, logger="mlflow", settings={"lr": 0.1})
    log.row(step=1, epoch=0, train_loss=0.5)
    metrics_log.MetricsLog(folder, 1, logger="mlflow", settings={"lr": 0.1})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    metrics_log.MetricsLog(folder, logger="mlflow")
    first, resumed, elsewhere = mlflow
    # mlflow 3 refuses to write to a folder of files.
    assert first.options["tracking_uri"] == f"sqlite:///{folder}/mlflow.db"
    assert first.options["artifact_location"] == f"file://{folder}/mlartifacts"
    assert (first.settings, first.metrics) == ([{"lr": 0.1}], [1])
    assert (resumed.run_id, resumed.settings) == ("run-0", [])
    assert (elsewhere.run_id, elsewhere.options["tracking_uri"]) == ("run-2", "http://127.0.0.1:9")
    assert elsewhere.options["artifact_location"] is None


def test_logger_that_cannot_be_opened_is_one_sentence(
    mlflow: list[StubMLFlowLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: StubMLFlowLogger, *words: Any, **options: Any) -> None:
        msg = "Max retries exceeded with url: /api\nTraceback"
        raise OSError(msg)

    monkeypatch.setattr(StubMLFlowLogger, "__init__", refuse)
    with pytest.raises(AvdataError, match=r"^Cannot open the logger mlflow: Max retries exceeded") as raised:
        metrics_log.open_logger("mlflow", tmp_path)
    assert "Traceback" not in raised.value.message
    assert "--logger mlflow" in str(raised.value)


def test_write_json_writes_null_for_values_that_json_lacks(tmp_path: Path) -> None:
    def refuse(text: str) -> Any:
        raise ValueError(text)

    write_json(tmp_path / "result.json", {"loss": float("nan"), "rates": [1.5, (float("inf"), 2)]})
    content = (tmp_path / "result.json").read_text()
    assert json.loads(content, parse_constant=refuse) == {"loss": None, "rates": [1.5, [None, 2]]}
