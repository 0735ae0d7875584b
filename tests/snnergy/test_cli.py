from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import snnergy as package
from avdata.config.overrides import parse_setting
from avdata.errors import UsageError
from snnergy.analysis.tables import show_result
from snnergy.cli import app, main
from snnergy.models.config import configure
from snnergy.training.config import TRAIN_PRESETS, TrainConfig, resolve_config

TINY = (
    "--model",
    "nano",
    "--train-preset",
    "quick",
    "--set",
    "model_options.dims=[4, 8, 8]",
    "--set",
    "model_options.heads=[1, 1, 1]",
    "--batch-size",
    "8",
)


def resolved(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> dict[str, Any]:
    """Return the settings that a command line trains with."""
    seen: dict[str, Any] = {}

    def train(dataset: Path, output: Path, config: Any, **options: Any) -> dict[str, Any]:
        seen.update(config.model_dump())
        return {"labels": [], "num_classes": 0}

    monkeypatch.setattr("snnergy.training.trainer.train", train)
    done = CliRunner().invoke(app, ["train", "set", "--json", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return seen


def test_import_does_not_load_torch() -> None:
    code = "import sys, snnergy.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_evaluation_does_not_load_lightning() -> None:
    code = (
        "import sys, snnergy.training.trainer, snnergy.analysis.comparison; print('lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_error_prints_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["snnergy", "train", str(tmp_path / "nowhere"), "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert "not a prepared dataset" in printed
    assert "Traceback" not in printed


def test_options_override_the_file_and_set_overrides_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nlr: 0.1\nema: 0.99\naugment: {flip: 0.25}\n")
    words = (
        "--config",
        file,
        "--lr",
        "0.2",
        "--epochs",
        "9",
        "--set",
        "epochs=11",
        "--set",
        "augment.bands=0.2",
    )
    found = resolved(monkeypatch, *words)
    assert (found["ema"], found["lr"], found["epochs"]) == (0.99, 0.2, 11)
    assert (found["augment"]["flip"], found["augment"]["bands"]) == (0.25, 0.2)


@pytest.mark.parametrize(
    ("words", "preset"),
    [((), "snnergy"), (("--steps", "250"), "snnergy"), (("--steps", "250", "--train-preset", "mm"), "mm")],
)
def test_only_its_option_selects_the_training_preset(
    monkeypatch: pytest.MonkeyPatch, words: Sequence[str], preset: str
) -> None:
    found = resolved(monkeypatch, *words)
    assert found["train_preset"] == preset
    assert found["mixup"] == TRAIN_PRESETS[preset].get("mixup", 0.2)
    assert found["model"] == "small"


def test_train_prints_all_settings_on_one_line_of_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnergy.training.trainer.train", lambda *args, **options: {})
    words = ["train", "set", "--json", "--steps", "250", "--set", "augment.flip=0", "--batch-size", "32"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("settings: ")]
    shown = dict(word.split("=", 1) for word in line.split()[1:])
    assert shown["train_preset"] == "snnergy"
    assert (shown["lr"], shown["augment.flip"], shown["batch_size"]) == ("0.00025", "0.0", "32")
    # With --steps, the number of epochs has no effect.
    config = TrainConfig(steps=250, batch_size=32)
    expected = {*config.model_dump(), *(f"augment.{name}" for name in config.augment.model_dump())}
    assert set(shown) == expected - {"augment", "model_options", "epochs"}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({"epoch": 3}, "Unknown training setting epoch"),
        ({"augment": {"flop": 1}}, r"Unknown training setting augment\.flop"),
        ({"epochs": 0}, "Invalid training setting epochs=0"),
        ({"train_preset": "fast"}, "Unknown training preset 'fast'"),
        ({"lr": float("inf")}, "training setting lr=inf"),
        ({"betas": [0.9, 2]}, r"training setting betas\.1=2"),
        ({"augment": 1}, "augment is a group of settings"),
        ({"lr": float("nan")}, "a finite number"),
    ],
)
def test_invalid_setting_is_named(layer: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        resolve_config(None, layer)


@pytest.mark.parametrize("options", [{"heads": 3}, {"heads": [1, "2", 4]}, {"ratio": "two"}, {"dims": None}])
def test_model_option_of_wrong_type_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        configure("nano", **options)


@pytest.mark.parametrize(
    ("text", "value"), [("alpha_init=1e-1", 0.1), ("surrogate_slope=2E0", 2.0), ("dropout=1e-1", 0.1)]
)
def test_model_option_with_an_exponent_is_a_number(text: str, value: float) -> None:
    # YAML 1.1 reads numbers without a dot as text.
    (found,) = resolve_config(None, parse_setting(f"model_options.{text}")).model_options.values()
    assert found == value
    assert isinstance(found, float)


def test_settings_in_hints_are_accepted() -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(package.__file__).parent.rglob("*.py")]
    shown = {text for source in sources for text in re.findall(r"--set (\w[\w.]*=[\w.]+)", source)}
    assert "precision=32" in shown
    for text in shown:
        name = text.split("=")[0]
        assert resolve_config(None, parse_setting(text)), name


def test_author_presets_have_their_values() -> None:
    la, mm = resolve_config("la"), resolve_config("mm")
    assert (la.lr, la.batch_size, la.schedule, la.weight_decay, la.clip) == (5e-5, 8, "constant", 1e-4, 5.0)
    assert (la.label_smoothing, la.mixup, la.epochs) == (0.0, 0.0, 200)
    assert (mm.lr, mm.batch_size, mm.schedule, mm.warmup_epochs, mm.min_lr) == (5e-4, 64, "cosine", 20, 1e-5)
    assert (mm.label_smoothing, mm.mixup, mm.clip) == (0.1, 0.2, 1.0)
    assert all(resolve_config(name).train_preset == name for name in TRAIN_PRESETS)


def test_learning_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    config = resolve_config("snnergy", {"batch_size": 128})
    rates = [config.rate(step, 2000, 10) for step in range(2001)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == rates[100] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.slow
def test_train_resumes_and_evaluate_prints_classes(tiny_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", str(tiny_set), "--steps", "2", "--output", str(run), "--device", "cpu", "--json", *TINY]
    trained = CliRunner().invoke(app, words, catch_exceptions=False)
    again = CliRunner().invoke(app, ["train", str(tiny_set), "--steps", "2", "--output", str(run), *TINY])
    assert "finished run" in str(again.exception)
    assert "--resume and --steps above 2," in str(again.exception)
    (run / "result.json").unlink()
    words = ["train", str(tiny_set), "--output", str(run), "--resume", "--device", "cpu", "--json"]
    resumed = CliRunner().invoke(app, words, catch_exceptions=False)
    first, second = json.loads(trained.stdout), json.loads(resumed.stdout)
    assert first["test"] == second["test"]
    shown = CliRunner().invoke(app, ["evaluate", str(run), str(tiny_set), "--device", "cpu"])
    assert shown.exit_code == 0
    assert "precision" in shown.output


def test_result_without_splits_prints_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    show_result({"labels": ["a", "b"]}, as_json=False)
    assert "neither a val nor a test split" in capsys.readouterr().out
