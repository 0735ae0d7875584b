"""Ctrl-C and SIGTERM during a training: exit codes 130 and 143, a saved state, and a resume without loss."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_run import TINY, no_charts, tiny_set

from snnergy.__main__ import main
from snnergy.training.checkpoint import load
from snnergy.training.run_data import RunData
from snnergy.training.train_step import TrainStep

__all__ = ["no_charts", "tiny_set"]

STEPS = 10


def run(words: list[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["snnergy", *map(str, words)])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # `main` sets it otherwise
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def training(where: Path, output: Path, *words: str) -> list[Any]:
    settings = {"eval_every": 1, "accumulate": 2, **{f"model_options.{name}": v for name, v in TINY.items()}}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    options = ["--model", "nano", "--train-preset", "quick", "--batch-size", "8", "--steps", str(STEPS)]
    return ["train", where, "-o", output, "--device", "cpu", "--threads", "1", *options, *sets, *words]


def send_after(patch: pytest.MonkeyPatch, owner: type, name: str, call: int, number: int) -> None:
    """Send a signal to this process before call number `call` of a method returns."""
    method, calls = getattr(owner, name), []

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        found = method(self, *arguments, **options)
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return found

    patch.setattr(owner, name, watched)


@pytest.fixture(scope="module")
def whole(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(training(tiny_set, folder, "--quiet"), patch) == 0
    return folder


# Four steps an epoch: within the first epoch, in its last step, in its evaluation, in the last one.
@pytest.mark.parametrize(
    ("number", "code", "owner", "name", "call", "saved"),
    [
        (signal.SIGINT, 130, TrainStep, "__call__", 2, 2),
        (signal.SIGTERM, 143, TrainStep, "__call__", 4, 4),
        (signal.SIGTERM, 143, RunData, "measure", 1, 4),
        (signal.SIGINT, 130, RunData, "measure", 3, STEPS),
    ],
)
def test_signalled_training_is_saved_and_resumes_without_loss(
    number: int, code: int, owner: type, name: str, call: int, saved: int, whole: Path, tiny_set: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = training(tiny_set, tmp_path / "run")
    with monkeypatch.context() as patch:
        send_after(patch, owner, name, call, number)
        assert run(words, patch) == code
    assert load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")["step"] == saved
    shown = capsys.readouterr().err
    assert "continue it with the same command with --resume" in shown
    assert "Traceback" not in shown
    assert run([*words, "--resume"], monkeypatch) == 0
    assert f"resuming after step {saved}" in capsys.readouterr().err
    ours, theirs = (folder / "metrics.csv" for folder in (tmp_path / "run", whole))
    assert ours.read_bytes() == theirs.read_bytes()
    states = [load((folder / "last.ckpt").read_bytes(), folder)["network"] for folder in (ours.parent, whole)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_second_signal_within_a_step_does_not_save_it(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = TrainStep._clip

    def interrupted(self: TrainStep) -> torch.Tensor:
        norm = clip(self)
        if self.step == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return norm

    monkeypatch.setattr(TrainStep, "_clip", interrupted)
    words = [*training(tiny_set, tmp_path / "run"), "--set", "save_every=1"]
    assert run(words, monkeypatch) == 130
    assert load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")["step"] == 2


def test_signal_before_the_first_step_hints_at_a_new_start(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: RunData, *arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunData, "__init__", interrupted)
        assert run(training(tiny_set, tmp_path / "run"), patch) == 130
    assert "Nothing was saved yet: run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
