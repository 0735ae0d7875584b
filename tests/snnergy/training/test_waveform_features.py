"""Training on mels that the device computes from stored waveforms."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from avdata.errors import UsageError
from avdata.streaming.batch import AVBatch
from avdata.streaming.loader import AVLoader
from snnergy.analysis.comparison import compare_fusions
from snnergy.analysis.report import collect_page_data
from snnergy.cli import app
from snnergy.data import mel_transform, move_to_device, open_split
from snnergy.training.config import TrainConfig
from snnergy.training.evaluation import evaluate
from snnergy.training.trainer import train

Quick = Callable[..., TrainConfig]


def test_mel_of_stored_waveform_equals_stored_mel(tiny_set: Path) -> None:
    data = open_split(tiny_set, "train", features="waveform", rank=0, world_size=1)
    batch = next(iter(data.loader(32, num_workers=0)))
    mel, _, _, _ = move_to_device(batch, "cpu", mel_transform(data, "cpu"))
    assert mel.shape == batch.mel.shape
    # In units of the stored float16: decibels.
    mean, std = (torch.tensor(data.info["mel_stats"][name])[:, None] for name in ("mean", "std"))
    torch.testing.assert_close(mel * std + mean, batch.mel * std + mean, rtol=2e-3, atol=2e-3)


@pytest.fixture
def without_stored_mels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every stored mel NaN, which training and evaluation must not read."""
    assemble = AVLoader._batch

    def with_nan(self: AVLoader, *given: Any) -> AVBatch:
        batch = assemble(self, *given)
        return replace(batch, mel=torch.full_like(batch.mel, math.nan))

    monkeypatch.setattr(AVLoader, "_batch", with_nan)


@pytest.mark.usefixtures("without_stored_mels")
def test_train_evaluate_and_report_use_waveforms_only(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    run = tmp_path / "run"
    config = quick(steps=2, features="waveform", augment={"bands": 0.25, "columns": 0.1, "shift": 1})
    result = train(tiny_set, run, config, device="cpu")
    assert math.isfinite(result["test"]["loss"])
    assert evaluate(run / result["chosen"], tiny_set, device="cpu")["test"] == result["test"]
    page = collect_page_data(run)
    assert page["view"].note == ""
    assert all(math.isfinite(sample.probability) for sample in page["view"].samples)
    energy = CliRunner().invoke(app, ["energy", str(run), str(tiny_set), "--json"], catch_exceptions=False)
    assert math.isfinite(json.loads(energy.stdout)["mj_exact"])


@pytest.mark.usefixtures("without_stored_mels")
def test_comparison_uses_waveforms_only(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    config = quick(steps=1, features="waveform")
    (row,) = compare_fusions(tiny_set, tmp_path, config, fusions=["audio"], seeds=1, device="cpu")
    assert math.isfinite(row.energy.millijoules())
    assert math.isfinite(row.accuracy[0])


def test_train_with_features_option_stores_setting(tiny_set: Path, tmp_path: Path) -> None:
    words = ["train", str(tiny_set), "--features", "waveform", "--steps", "1", "--output", str(tmp_path)]
    words += ["--device", "cpu", "--batch-size", "8", "--set", "model_options.dims=[4,8,8]"]
    words += ["--set", "model_options.heads=[1,1,1]"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert json.loads((tmp_path / "run.json").read_text())["config"]["features"] == "waveform"


@pytest.mark.parametrize(
    ("audio", "message"), [({"flac": False}, "waveform"), ({"feature": "pcen"}, "audio.feature=pcen")]
)
def test_train_rejects_dataset_without_usable_waveforms(
    tiny_set: Path, tmp_path: Path, quick: Quick, audio: dict[str, Any], message: str
) -> None:
    where = tmp_path / "set"
    shutil.copytree(tiny_set, where)
    info = json.loads((where / "dataset.json").read_text())
    info["config"]["audio"] |= audio
    (where / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match=message):
        train(where, tmp_path / "run", quick(features="waveform"), device="cpu")
    assert not (tmp_path / "run").exists()
