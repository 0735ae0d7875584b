from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import avdata
from avdata.errors import AvdataError
from snnergy.train import TrainConfig, evaluate, train


def snnergy(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snnergy.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_a_short_run_leaves_everything_behind_and_evaluates_the_same_again(
    synthetic_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = train(synthetic_set, run, TrainConfig(steps=3, batch_size=8))
    assert result["steps"] == 3
    assert result["test"]["samples"] == 8
    assert sum(map(sum, result["test"]["confusion"])) == 8
    for name in (
        "config.json",
        "metrics.csv",
        "last.ckpt",
        "curves.png",
        "confusion.png",
        "result.json",
    ):
        assert (run / name).stat().st_size > 0, name
    assert json.loads((run / "result.json").read_text())["test"] == result["test"]
    assert evaluate(run / result["chosen"], synthetic_set)["test"] == result["test"]


def test_equal_seeds_train_equal_networks(synthetic_set: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=2, batch_size=8, workers=0)
    one, two = (train(synthetic_set, tmp_path / name, config) for name in ("one", "two"))
    assert one["test"]["loss"] == two["test"]["loss"]


def test_a_finished_run_is_not_overwritten(synthetic_set: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(AvdataError, match="finished run"):
        train(synthetic_set, tmp_path, TrainConfig(steps=1))


def test_help_is_quick_to_import_and_mistakes_are_one_sentence(tmp_path: Path) -> None:
    code = "import sys, snnergy.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    missing = snnergy("train", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert missing.returncode == 1
    assert "not a prepared set" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.mark.acceptance
def test_cmqka_solves_the_audio_visual_xor_and_plain_concatenation_does_not(tmp_path: Path) -> None:
    avdata.prepare("synthetic", out=tmp_path / "set", workers=2)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = {}
    for fusion in ("cmqka", "concat"):
        words = [
            "train",
            tmp_path / "set",
            "--steps",
            "250",
            "--fusion",
            fusion,
            "--out",
            tmp_path / fusion,
            "--json",
        ]
        command = [sys.executable, "-m", "snnergy.cli", *map(str, words)]
        runs[fusion] = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    accuracy = {
        fusion: json.loads(run.communicate(timeout=500)[0])["test"]["accuracy"]
        for fusion, run in runs.items()
    }
    assert accuracy["cmqka"] > 0.95
    assert accuracy["concat"] < 0.65
