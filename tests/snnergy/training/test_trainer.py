from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.plugins.environments import LightningEnvironment
from support.splits import copy_splits
from support.trees import digest_tree
from torch import nn
from typer.testing import CliRunner

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.storage.locks import lock_folder
from avdata.streaming.batch import AVBatch
from avdata.streaming.dataset import AVDataset
from snnergy.analysis.comparison import compare_fusions
from snnergy.analysis.run_results import read_run
from snnergy.cli import app
from snnergy.data import open_split
from snnergy.models.network import build
from snnergy.training.checkpoint import load, load_network
from snnergy.training.config import TrainConfig, resolve_config
from snnergy.training.distributed import init_fabric, sync_batch_norm_stats
from snnergy.training.evaluation import evaluate
from snnergy.training.plots import plot_confusion
from snnergy.training.setup import batch_norm_warning
from snnergy.training.train_step import TrainStep
from snnergy.training.trainer import LOCK_DIR, train

Quick = Callable[..., TrainConfig]


@pytest.mark.usefixtures("charts")
def test_train_writes_all_files_and_evaluate_reproduces_result(
    tiny_set: Path, tmp_path: Path, quick: Quick
) -> None:
    run = tmp_path / "run"
    result = train(tiny_set, run, quick(steps=3, select="uar"), device="cpu")
    assert result["steps"] == 3
    assert result["best"]["score"] == result["val"]["uar"]
    assert result["test"]["samples"] == 8
    assert sum(map(sum, result["test"]["confusion"])) == 8
    names = "run.json metrics.csv last.ckpt best.ckpt curves.png confusion.png classes.csv predictions.csv"
    for name in [*names.split(), "result.json"]:
        assert (run / name).stat().st_size > 0, name
    assert any((run / "tensorboard").iterdir())
    assert json.loads((run / "result.json").read_text())["test"] == result["test"]
    again = evaluate(run / result["chosen"], tiny_set, device="cpu", predictions=tmp_path / "again.csv")
    assert again["test"] == result["test"]
    header, *lines = (tmp_path / "again.csv").read_text().splitlines()
    assert [header, *(line for line in lines if line.startswith("test,"))] == (
        run / "predictions.csv"
    ).read_text().splitlines()
    assert len(lines) == 4 + 8


def test_run_names_its_dataset_so_that_it_is_found_from_any_folder(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_set.parent)
    train(tiny_set.name, tmp_path / "run", quick(steps=1), device="cpu")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dataset"] == str(tiny_set.absolute())


def test_train_refuses_a_folder_that_another_training_writes(
    tiny_set: Path, tmp_path: Path, quick: Quick
) -> None:
    conflict = AvdataError("not this one")
    with (
        lock_folder(tmp_path / "run" / LOCK_DIR, conflict),
        pytest.raises(AvdataError, match="Another training writes to"),
    ):
        train(tiny_set, tmp_path / "run", quick(steps=1), device="cpu")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_DIR]
    train(tiny_set, tmp_path / "run", quick(steps=1), device="cpu")
    assert not (tmp_path / "run" / LOCK_DIR).exists()


def test_last_checkpoint_is_state_after_last_step(tiny_run: Path) -> None:
    result = json.loads((tiny_run / "result.json").read_text())
    last = load((tiny_run / "last.ckpt").read_bytes(), "last.ckpt")
    best = load((tiny_run / "best.ckpt").read_bytes(), "best.ckpt")
    assert last["step"] == 4
    assert best["step"] == result["best"]["step"]


def test_plot_confusion_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnergy.training.plots.MAX_NAMED_LABELS", 8)
    for count in (9, 18):
        labels = [f"label {number}" for number in range(count)]
        plot_confusion([[1] + [0] * (count - 1)] * count, labels, tmp_path / f"{count}.png")
    # Width and height follow the first 16 bytes of a PNG.
    sizes = [(tmp_path / f"{count}.png").read_bytes()[16:24] for count in (9, 18)]
    assert sizes[0] == sizes[1]


def test_train_is_determined_by_seed(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    seeds = {"one": 1, "again": 1, "other": 2}
    for name, seed in seeds.items():
        train(tiny_set, tmp_path / name, quick(steps=2, seed=seed), device="cpu")
    one, again, other = ((tmp_path / name / "metrics.csv").read_bytes() for name in seeds)
    assert one == again
    assert one != other


def test_accumulated_loss_is_close_to_full_step(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    """Batch norm normalizes each part separately, so that the losses are close, not equal."""
    losses = {}
    for parts in (1, 2):
        config = quick(steps=1, accumulate=parts)
        train(tiny_set, tmp_path / str(parts), config, device="cpu")
        with (tmp_path / str(parts) / "metrics.csv").open() as lines:
            losses[parts] = float(next(csv.DictReader(lines))["train_loss"])
    assert losses[1] == pytest.approx(losses[2], rel=0.05)


@pytest.mark.parametrize(
    ("settings", "processes", "size"),
    [({}, 1, None), ({"accumulate": 4}, 1, None), ({"sync_batchnorm": True}, 8, None),
     ({}, 8, 8), ({"accumulate": 4}, 2, 8), ({"batch_size": 8}, 1, 8)],
)  # fmt: skip
def test_small_batch_norm_is_warned_about(settings: dict[str, Any], processes: int, size: int | None) -> None:
    warning = batch_norm_warning(TrainConfig(**{"batch_size": 64, **settings}), processes)
    assert (warning is None) == (size is None)
    assert size is None or f"see {size} samples at once" in str(warning)


def test_train_logs_small_batch_norm(
    tiny_set: Path, tmp_path: Path, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_set, tmp_path / "few", quick(steps=1, batch_size=8), device="cpu")
    assert "Batch norms see 8 samples at once" in caplog.text
    caplog.clear()
    train(tiny_set, tmp_path / "enough", quick(steps=1, batch_size=16), device="cpu")
    assert "Batch norms" not in caplog.text


def test_train_rejects_indivisible_batch_size(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(UsageError, match="batch_size=8 is not divisible by 1 processes with accumulate=3"):
        train(tiny_set, tmp_path, quick(accumulate=3), device="cpu")


def test_batch_larger_than_the_split_is_not_padded(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    step = TrainStep.__call__

    def watched(self: TrainStep, batches: Sequence[AVBatch], **options: Any) -> Any:
        sizes.extend(len(batch.weight) for batch in batches)
        return step(self, batches, **options)

    monkeypatch.setattr(TrainStep, "__call__", watched)
    train(tiny_set, tmp_path / "run", quick(steps=2, batch_size=64), device="cpu")
    assert sizes == [32, 32]


def test_finished_run_can_be_extended(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    first = train(tiny_set, tmp_path / "run", quick(steps=None, epochs=1), device="cpu")
    with pytest.raises(AvdataError, match="a finished run") as raised:
        train(tiny_set, tmp_path / "run", quick(steps=None, epochs=1), device="cpu")
    assert "--resume and --epochs above 1," in str(raised.value.hint)
    with pytest.raises(UsageError, match="lr is"):
        train(tiny_set, tmp_path / "run", quick(steps=None, epochs=2, lr=0.5), device="cpu", resume=True)
    longer = train(tiny_set, tmp_path / "run", quick(steps=None, epochs=2), device="cpu", resume=True)
    assert (first["steps"], longer["steps"]) == (4, 8)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["epochs"] == 2
    with (tmp_path / "run" / "metrics.csv").open() as lines:
        steps = [int(row["step"]) for row in csv.DictReader(lines) if row["train_loss"]]
    assert steps == list(range(1, 9))


def test_resuming_a_finished_run_returns_its_result(
    tiny_set: Path, tmp_path: Path, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    train(tiny_set, run, quick(), device="cpu")
    before = digest_tree(run)
    again = train(tiny_set, run, quick(), device="cpu", resume=True)
    assert again == json.loads((run / "result.json").read_text())
    assert digest_tree(run) == before
    assert f"The run in {run} is finished. Extend it with --resume and --steps above 4." in caplog.messages
    for damaged in ("[]", "[1]", "{", "[" * 100_000):
        (run / "result.json").write_text(damaged)
        with pytest.raises(AvdataError, match=r"Cannot read .*result\.json"):
            train(tiny_set, run, quick(), device="cpu", resume=True)
        with pytest.raises(AvdataError, match=r"Cannot read .*result\.json"):
            read_run(run)
    (run / "result.json").write_text("{}")
    with pytest.raises(AvdataError, match=r"it is not the result of a run"):
        train(tiny_set, run, quick(), device="cpu", resume=True)


def test_resuming_a_finished_run_refuses_another_dataset(
    tiny_set: Path, tmp_path: Path, quick: Quick
) -> None:
    train(tiny_set, tmp_path / "run", quick(), device="cpu")
    other = tmp_path / "other"
    shutil.copytree(tiny_set, other)
    info = json.loads((other / "dataset.json").read_text())
    info["labels"] = [f"other-{label}" for label in info["labels"]]
    (other / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(AvdataError, match="labels"):
        train(other, tmp_path / "run", quick(), device="cpu", resume=True)


def test_evaluate_needs_no_train_split(tiny_set: Path, tmp_path: Path, tiny_run: Path) -> None:
    result = json.loads((tiny_run / "result.json").read_text())
    where = copy_splits(tiny_set, tmp_path / "set", "val")
    found = evaluate(tiny_run / "best.ckpt", where, device="cpu")
    assert found["val"] == result["val"]
    assert "test" not in found
    done = CliRunner().invoke(app, ["energy", str(tiny_run), str(where), "--json"])
    assert json.loads(done.stdout)["split"] == "val"


def test_evaluate_refuses_a_missing_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="No GPU available"):
        evaluate(tmp_path / "best.ckpt", tmp_path, device="cuda")


def test_train_keeps_finished_run(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(AvdataError, match=r"holds no run, but result\.json"):
        train(tiny_set, tmp_path, quick(), device="cpu")


def test_load_network_returns_moving_average(tiny_run: Path) -> None:
    state = load((tiny_run / "last.ckpt").read_bytes(), "last.ckpt")
    network, _ = load_network(tiny_run / "last.ckpt")
    assert torch.equal(network.head.weight, state["ema"]["head.weight"])
    assert not torch.equal(network.head.weight, state["network"]["head.weight"])


@pytest.mark.parametrize(("warmup", "eval_every", "expected"), [(0, 1, {2, 3, 4}), (0, 2, {6}), (3, 1, {5})])
def test_patience_counts_evaluations_after_the_warm_up(
    tiny_set: Path, tmp_path: Path, quick: Quick, warmup: int, eval_every: int, expected: set[int]
) -> None:
    # One step per epoch, and weights that do not change.
    config = quick(
        steps=None,
        epochs=20,
        lr=1e-12,
        batch_size=32,
        patience=2,
        eval_every=eval_every,
        warmup_epochs=warmup,
    )
    result = train(tiny_set, tmp_path / "run", config, device="cpu")
    assert result["steps"] in expected


def test_train_stops_at_nan_and_names_layer(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = nn.Conv2d.forward
    calls = {"head": 0}

    def broken(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        made = forward(self, x)
        if self.in_channels == 3 and self.training:
            calls["head"] += 1
        return made * float("nan") if self.in_channels == 3 and calls["head"] > 2 else made

    monkeypatch.setattr(nn.Conv2d, "forward", broken)
    with pytest.raises(AvdataError, match=r"at step 3: .* the layer encoders\.video\.0\.embedding\.\S*conv"):
        train(tiny_set, tmp_path / "run", quick(steps=4, save_every=1), device="cpu")
    state = load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")
    assert state["step"] == 2
    assert all(weight.isfinite().all() for weight in state["network"].values())


def test_train_rejects_non_finite_weights_of_last_step(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loss of every step is finite, since none comes after the last.
    monkeypatch.setattr(TrainConfig, "rate", lambda self, step, steps, epoch: math.inf if step == 1 else 1e-3)
    with pytest.raises(AvdataError, match=r"Non-finite weights after step 2: \S+"):
        train(tiny_set, tmp_path / "run", quick(steps=2, save_every=1), device="cpu")
    assert not (tmp_path / "run" / "result.json").exists()
    assert load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")["step"] == 1


def test_train_step_finds_nan_in_any_part(tiny_set: Path, quick: Quick) -> None:
    one = learner(quick(accumulate=2), Fabric(accelerator="cpu", devices=1))
    first, second = zip(
        range(2), open_split(tiny_set, "train", rank=0, world_size=1).loader(4, num_workers=0), strict=False
    )
    first[1].mel[0, 0] = math.nan
    with pytest.raises(AvdataError, match="the audio of the batch"):
        one([first[1], second[1]], real=8, epoch=0)


def test_train_handles_single_time_step_and_small_last_batch(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = AVDataset.loader

    def first_steps(*args: Any, **options: Any) -> Any:
        loader = stream(*args, **options)
        made = loader._batch
        loader._batch = lambda *given: one_step(made(*given))
        return loader

    def one_step(batch: AVBatch) -> AVBatch:
        return replace(batch, mel=batch.mel[:, :1], frames=batch.frames[:, :1])

    monkeypatch.setattr(AVDataset, "loader", first_steps)
    result = train(tiny_set, tmp_path / "run", quick(steps=2, batch_size=31), device="cpu")
    assert math.isfinite(result["val"]["loss"])


@pytest.mark.parametrize("name", ["fusion", "num_classes", "video_channels"])
def test_train_rejects_model_options_set_elsewhere(
    tiny_set: Path, tmp_path: Path, quick: Quick, name: str
) -> None:
    with pytest.raises(UsageError, match=f"model_options.{name}="):
        train(
            tiny_set, tmp_path / "run", quick(model_options={**quick().model_options, name: 1}), device="cpu"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("train_preset", ["snnergy", "la", "mm"])
def test_train_runs_with_every_training_preset(
    tiny_set: Path, tmp_path: Path, quick: Quick, train_preset: str
) -> None:
    config = resolve_config(
        train_preset, {"model": "nano", "steps": 1, "batch_size": 32, "model_options": quick().model_options}
    )
    result = train(tiny_set, tmp_path / "run", config, device="cpu")
    assert result["config"]["train_preset"] == train_preset


def test_ogm_ge_needs_two_modalities(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    train(tiny_set, tmp_path / "both", quick(steps=2, ogm_ge=0.8, fusion="concat"), device="cpu")
    with pytest.raises(UsageError, match="ogm_ge does not support"):
        train(tiny_set, tmp_path / "one", quick(steps=1, ogm_ge=0.8, fusion="audio"), device="cpu")


def learner(config: TrainConfig, fabric: Fabric) -> TrainStep:
    torch.manual_seed(0)
    network = build("nano", num_classes=2, dims=(4, 8, 8), heads=(1, 1, 1))
    return TrainStep(network, config, fabric, schedule=lambda step: 1e-3, repeated=False)


def learn_once(config: TrainConfig, where: Path, precision: MixedPrecision) -> tuple[float, float]:
    """Return the norm of the gradient before clipping, and the norm of the weight update."""
    # With an explicit environment, Fabric does not search for a cluster.
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision, LightningEnvironment()])
    one = learner(config, fabric)
    before = [weight.detach().clone() for weight in one.network.parameters()]
    batch = next(iter(open_split(where, "train", rank=0, world_size=1).loader(8, num_workers=0)))
    _, norm = one([batch], real=8, epoch=0)
    moved = [(old - new.detach()).norm() for old, new in zip(before, one.network.parameters(), strict=True)]
    return float(norm), float(torch.stack(moved).norm())


def test_gradient_is_unscaled_before_clipping(tiny_set: Path, quick: Quick) -> None:
    """AdamW hides a wrong scale unless its epsilon matters; clipping makes the gradient that small."""
    found = []
    for scale in (2.0**4, 2.0**12):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        found.append(learn_once(quick(clip=1e-7), tiny_set, MixedPrecision("16-mixed", "cpu", scaler)))
    (norm, moved), (norm_scaled, moved_scaled) = found
    assert norm_scaled == pytest.approx(norm, rel=0.05)
    assert moved_scaled == pytest.approx(moved, rel=0.05)
    assert norm < 10


def test_train_runs_in_bf16(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    result = train(tiny_set, tmp_path / "run", quick(steps=2, precision="bf16"), device="cpu")
    state = load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")
    assert state["network"]["head.weight"].dtype == torch.float32
    assert math.isfinite(result["val"]["loss"])


@pytest.mark.parametrize("setting", [{"precision": "fp16"}, {"sync_batchnorm": True}])
def test_train_rejects_gpu_settings_on_cpu(
    tiny_set: Path, tmp_path: Path, quick: Quick, setting: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"needs (a GPU|GPUs)"):
        train(tiny_set, tmp_path / "run", quick(**setting), device="cpu")
    assert not (tmp_path / "run").exists()


def test_sync_batch_norm_stats_averages_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process has means of 3 and variances of 5, this one 1 and 2."""
    norm = nn.BatchNorm1d(2)
    norm.running_mean, norm.running_var = torch.full((2,), 1.0), torch.full((2,), 2.0)
    other = torch.tensor([3.0, 3.0, 5.0, 5.0])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(other))
    sync_batch_norm_stats(SimpleNamespace(world_size=2), nn.Sequential(norm))  # type: ignore[arg-type]
    assert norm.running_mean.tolist() == [2.0, 2.0]
    assert norm.running_var.tolist() == [3.5, 3.5]


def test_train_without_validation_uses_last_checkpoint(
    tiny_set: Path, tmp_path: Path, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    where = copy_splits(tiny_set, tmp_path / "set", "train", "test")
    result = train(where, tmp_path / "run", quick(), device="cpu")
    assert result["chosen"] == "last.ckpt"
    assert "no val split" in caplog.text
    assert "last.ckpt is evaluated on test" in caplog.text
    assert "val" not in result
    assert result["test"]["samples"] == 8


@pytest.fixture(scope="module")
def xor_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("xor") / "set"
    avdata.prepare("synthetic", output=where, workers=2)
    return where


@pytest.mark.acceptance
@pytest.mark.parametrize("seed", ["42", "43", "44"])
def test_cmqka_solves_audio_visual_xor_and_concat_does_not(xor_set: Path, tmp_path: Path, seed: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = {}
    for fusion in ("cmqka", "concat"):
        words = ["train", xor_set, "--model", "nano", "--train-preset", "quick", "--steps", "250"]
        words += ["--fusion", fusion, "--output", tmp_path / fusion]
        command = [sys.executable, "-m", "snnergy.cli", *map(str, words), "--seed", seed, "--json"]
        runs[fusion] = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    accuracy = {
        fusion: json.loads(run.communicate(timeout=900)[0])["test"]["accuracy"]
        for fusion, run in runs.items()
    }
    assert accuracy["cmqka"] >= 0.95
    assert accuracy["concat"] <= 0.65


@pytest.mark.acceptance
def test_fusion_is_needed_if_one_modality_is_hidden(tmp_path: Path) -> None:
    avdata.prepare("synthetic-agree", output=tmp_path / "set", workers=2)
    config = resolve_config("quick", {"model": "nano", "steps": 250})
    accuracy = {
        row.fusion: row.mean
        for row in compare_fusions(
            tmp_path / "set", tmp_path, config, fusions=["audio", "video", "concat", "cmqka"], seeds=1
        )
    }
    assert accuracy["audio"] <= 0.70
    assert accuracy["video"] <= 0.70
    assert accuracy["concat"] >= 0.95
    assert accuracy["cmqka"] >= 0.95


@pytest.mark.parametrize("local", [4, 2])
def test_init_fabric_rejects_unequal_machines(local: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two machines with four and two processes: on the second one alone, the numbers look consistent.
    for name, count in (("WORLD_SIZE", 6), ("LOCAL_WORLD_SIZE", local), ("GROUP_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(count))
    with pytest.raises(UsageError, match="every machine must have equally many"):
        init_fabric("cpu", "32")
