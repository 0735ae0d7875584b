"""Training loop: epochs of steps and evaluations, on one process or several.

The folder of a run contains `run.json`, `metrics.csv`, `tensorboard/`, `best.ckpt` and `last.ckpt`; a
finished run also `result.json`, `classes.csv`, `curves.png` and `confusion.png`. A run that was killed at
any time resumes from `last.ckpt` and ends with the same weights and the same log. On another number of
processes it resumes if `accumulate` keeps the number of samples that batch norms see.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avdata.progress import Progress
from avdata.streaming.batch import AVBatch
from avdata.streaming.dataset import AVDataset
from snnergy.data import mel_transform, open_any_split, open_split
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.training.checkpoint import (
    RUN_FILE,
    check_run_folder,
    load,
    load_all,
    read_config,
    run_settings,
    save,
    write_json,
)
from snnergy.training.config import TrainConfig, resolve_config
from snnergy.training.diagnostics import check_result, check_setup, diagnose, format_warning
from snnergy.training.distributed import (
    Device,
    broadcast_from_rank0,
    check_on_rank0,
    explain_lost_ranks,
    init_fabric,
    select_device,
    sum_over_ranks,
    sync_batch_norm_stats,
)
from snnergy.training.evaluation import (
    evaluate_split,
    match_dataset,
    recalibrate_batch_norm,
    write_classes,
)
from snnergy.training.metrics_log import MetricsLog
from snnergy.training.plots import plot_confusion, plot_curves
from snnergy.training.setup import batch_norm_warning, build_network, part_size
from snnergy.training.train_step import TrainStep

if TYPE_CHECKING:
    from lightning.fabric import Fabric


_log = logging.getLogger(__name__)


def train(
    dataset: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    progress: Progress = lambda stage, done, total: None,
    resume: bool = False,
    device: Device = "auto",
) -> dict[str, Any]:
    """Train a network on a prepared dataset and evaluate it once on the test split.

    Under torchrun every process calls this function. A restart by torchrun resumes without `resume`.

    Args:
        dataset: folder or URL of the prepared dataset.
        output: folder of the run; with several machines, on the first one.
        config: settings; None uses the defaults, or the settings of the run to resume.
        progress: called as ("train", done, total), in optimizer steps, on rank 0.
        resume: continue from `last.ckpt` of the run.
        device: `auto` uses a GPU if there is one.

    Returns:
        The content of `result.json`: accuracy, loss and metrics by class on the validation and test splits,
        settings, duration, and firing rates.

    Raises:
        AvdataError: the dataset or the output folder cannot be used, the loss is not finite, or another
            process of the run exited.
        UsageError: unknown name, or the run to resume has other settings.
    """
    folder, began = Path(output), time.perf_counter()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    resume = resume or (restarted and (folder / RUN_FILE).is_file())
    settings = config or (run_settings(folder) if resume else resolve_config(None))
    fabric = init_fabric(device, settings.precision, sync_batchnorm=settings.sync_batchnorm)
    with explain_lost_ranks(fabric):
        if fabric.world_size > 1:
            # The folder with the settings of the run to resume may exist on the first machine only.
            content = broadcast_from_rank0(fabric, settings.model_dump_json().encode())
            settings = TrainConfig.model_validate_json(content or b"")
        check_on_rank0(
            fabric, partial(check_run_folder, folder, settings, resume=resume, processes=fabric.world_size)
        )
        run = Trainer(fabric, dataset, folder, settings, progress)
        run.begin(resume=resume)
        run.work()
        return run.finish(began)


class Trainer:
    """State of a run in progress."""

    def __init__(
        self, fabric: Fabric, where: str | Path, folder: Path, config: TrainConfig, progress: Progress
    ) -> None:
        self.fabric, self.where, self.folder, self.config = fabric, where, folder, config
        self.progress = progress
        torch.manual_seed(config.seed)
        self.data = self._open("train", shuffle=True)
        # A second dataset object, because recalibration always reads epoch 0.
        self.calibration = self._open("train", shuffle=True)
        self.mel = mel_transform(self.data, fabric.device)
        self.facts = DatasetFacts.of(self.data.info)
        self.part = part_size(config, fabric.world_size, self.data)
        self.loader = self.data.loader(
            self.part, num_workers=self.workers, pin_memory=fabric.device.type == "cuda"
        )
        self.epoch_steps = -(-self.data.num_samples // config.batch_size)
        self.steps = config.steps or config.epochs * self.epoch_steps
        self.every = config.evaluation_interval(self.steps, self.epoch_steps)
        self.validates = "val" in self.data.info["splits"]
        repeated = self.data.info["config"].get("audio", {}).get("layout") == "repeat"
        self.train_step = TrainStep(
            build_network(config, self.data),
            config,
            fabric,
            schedule=lambda step: config.rate(step, self.steps, self.epoch_steps),
            repeated=repeated,
            mel=self.mel,
        )
        self.best: dict[str, Any] | None = None
        # Number of evaluations after the warm-up since the best one.
        self.evaluated, self.saved, self.stale = -1, 0, 0
        self.warned: set[str] = set()
        self.log: MetricsLog | None = None

    @property
    def workers(self) -> int:
        """Number of loader threads."""
        # On the CPU, loader threads would compete with torch's for the same cores.
        default = 0 if self.fabric.device.type == "cpu" else 4
        return default if self.config.workers is None else self.config.workers

    def _open(self, split: str, *, shuffle: bool = False) -> AVDataset:
        rank, world = (None, None) if self.fabric.world_size > 1 else (0, 1)
        return open_split(
            self.where, split, features=self.config.features, shuffle=shuffle, seed=self.config.seed,
            rank=rank, world_size=world,
        )  # fmt: skip

    def begin(self, *, resume: bool) -> None:
        """Write `run.json`, or restore the state of the run to resume."""
        first = self.fabric.is_global_zero
        if resume:
            check_on_rank0(self.fabric, lambda: read_config(self.folder)["facts"].check_equal(self.facts))
        last = self.folder / "last.ckpt"
        data = last.read_bytes() if first and resume and last.is_file() else None
        content = broadcast_from_rank0(self.fabric, data)
        if content is not None:
            state = load(content, last)
            self.train_step.load_state_dict(state)
            self.loader.load_state_dict(state["loader"])
            self.best, self.evaluated = state["best"], int(state["evaluated"])
            self.stale = int(state["stale"])
            self.saved = self.train_step.step
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Of a finished run that is extended.
            (self.folder / "result.json").unlink(missing_ok=True)
            if content is None or run_settings(self.folder) != self.config:
                model = asdict(self.train_step.network.config)
                about = {
                    "config": self.config.model_dump(), "model": model, "dataset": str(self.where),
                    "facts": self.facts.dump(), "processes": self.fabric.world_size,
                }  # fmt: skip
                write_json(self.folder / RUN_FILE, about)
            self.log = MetricsLog(self.folder, self.train_step.step)
            small = batch_norm_warning(self.config, self.fabric.world_size)
            for warning in [*([small] if small else []), *check_setup(self.config, self.data.info)]:
                _log.warning(warning)

    def work(self) -> None:
        """Run epochs until all steps are done, or validation has not improved for `patience` evaluations."""
        epoch = self.data.epoch
        while self.train_step.step < self.steps and not self._stalled():
            epoch = self.data.epoch
            self.loader.set_epoch(epoch)
            for batches, before in self._groups():
                real = min(self.config.batch_size, self.data.num_samples - before)
                self._step(batches, real, epoch)
                if self.train_step.step == self.steps:
                    break
                if self._save_due() and self._inside(epoch):
                    self.save(calibrated=False)
            else:
                if (epoch + 1) % self.every == 0:
                    self.evaluate(epoch)
                elif self._save_due():
                    self.save(calibrated=False)
        if self.evaluated != self.train_step.step:
            self.evaluate(epoch)

    def _save_due(self) -> bool:
        return self.train_step.step - self.saved >= self.config.save_every

    def _inside(self, epoch: int) -> bool:
        # After the last step of an epoch an evaluation may be due; the state to resume from is the one
        # after it. If that step has fewer parts than the others, the loader is already at the next epoch.
        position = self.loader.state_dict()
        return int(position["epoch"]) == epoch and int(position["samples"]) < self.data.num_samples

    def _groups(self) -> Iterator[tuple[list[AVBatch], int]]:
        """Yield the parts of each step, and the number of samples of the epoch before it."""
        parts: list[AVBatch] = []
        before = int(self.loader.state_dict()["samples"])
        for batch in self.loader:
            parts.append(batch)
            if len(parts) == self.config.accumulate:
                yield parts, before
                parts, before = [], before + self.config.batch_size
        if parts:
            yield parts, before

    def _step(self, batches: list[AVBatch], real: int, epoch: int) -> None:
        train_step, rate = self.train_step, self.train_step.rate
        loss, norm = train_step(batches, real=real, epoch=epoch)
        if train_step.step % max(1, min(10, self.steps // 20)) == 0:
            loss = sum_over_ranks(self.fabric, loss)
            if self.log:
                values = {"lr": rate, "train_loss": float(loss), "grad_norm": float(norm)}
                self.log.row(step=train_step.step, epoch=epoch, **values)
        if self.fabric.is_global_zero:
            self.progress("train", train_step.step, self.steps)

    def evaluate(self, epoch: int) -> None:
        """Recalibrate, validate, and save `last.ckpt`, and `best.ckpt` if validation improved."""
        network, step = self.train_step.average, self.train_step.step
        recalibrate_batch_norm(network, self.calibration, self.part, self.fabric.device, self.mel)
        sync_batch_norm_stats(self.fabric, network)
        self.evaluated = step
        if self.validates:
            rates: dict[str, float] = {}
            measured = self._measure(network, "val", rates)
            accuracy, loss = measured["accuracy"], measured["loss"]
            if self.log:
                self.log.row(step=step, epoch=epoch, val_loss=loss, val_accuracy=accuracy)
                self.log.rates(rates, step)
                self._warn(network, rates)
            candidate = {"accuracy": accuracy, "loss": loss, "epoch": epoch, "step": step}
            candidate |= {"measured": measured, "rates": rates}
            warm = step > self.config.warmup_steps(self.steps, self.epoch_steps)
            self.stale += warm
            if self.best is None or _rank(candidate) > _rank(self.best):
                self.best, self.stale = candidate, 0
                self.save(calibrated=True, name="best.ckpt")
        self.save(calibrated=True)

    def _measure(self, network: SNNergy, split: str, rates: dict[str, float] | None = None) -> dict[str, Any]:
        data = self._open(split)
        part = min(self.part, -(-data.num_samples // self.fabric.world_size))
        loader = data.loader(part, num_workers=self.workers)
        synchronize = self.fabric.world_size > 1
        return evaluate_split(
            network, loader, self.data.labels, self.fabric.device, mel=self.mel, synchronize=synchronize,
            rates=rates,
        )  # fmt: skip

    def _warn(self, network: SNNergy, rates: dict[str, float]) -> None:
        for sentence, layers in diagnose(network, rates).items():
            new = [layer for layer in layers if f"{sentence}: {layer}" not in self.warned]
            self.warned |= {f"{sentence}: {layer}" for layer in layers}
            if new:
                _log.warning("step %d: %s", self.train_step.step, format_warning(sentence, new, rates))

    def _stalled(self) -> bool:
        return self.config.patience is not None and self.stale >= self.config.patience

    def save(self, *, calibrated: bool, name: str = "last.ckpt") -> None:
        """Write a checkpoint, on rank 0."""
        self.saved = self.train_step.step
        self.train_step.check_finite()
        if self.fabric.is_global_zero:
            if self.log:
                self.log.flush()
            state = {
                **self.train_step.state_dict(), "loader": self.loader.state_dict(), "best": self.best,
                "evaluated": self.evaluated, "calibrated": calibrated, "facts": self.facts.dump(),
                "stale": self.stale,
            }  # fmt: skip
            save(self.folder / name, state)

    def finish(self, began: float) -> dict[str, Any]:
        """Evaluate the selected network on the test split and write results and plots."""
        chosen = "best.ckpt" if self.best is not None else "last.ckpt"
        network = self.train_step.average
        path = self.folder / chosen
        data = path.read_bytes() if self.fabric.is_global_zero else None
        content = broadcast_from_rank0(self.fabric, data)
        assert content is not None
        state = load(content, path)
        network.load_state_dict(state["ema"] or state["network"])
        best = dict(self.best or {})
        rates: dict[str, float] = best.pop("rates", {})
        measured = {"val": best.pop("measured")} if best else {}
        if "test" in self.data.info["splits"]:
            measured["test"] = self._measure(network, "test", rates)
        warnings = [text for split, values in measured.items() for text in check_result(values, split)]
        for warning in warnings if self.log else ():
            _log.warning(warning)
        result: dict[str, Any] = {
            "labels": self.data.labels,
            "num_classes": len(self.data.labels),
            **measured,
            "steps": self.train_step.step,
            "seconds": round(time.perf_counter() - began, 1),
            "params": sum(weight.numel() for weight in network.parameters()),
            "chosen": chosen,
            "best": best or None,
            "processes": self.fabric.world_size,
            "device": str(self.fabric.device),
            "health": diagnose(network, rates),
            "warnings": warnings,
            "rates": {name: round(rate, 6) for name, rate in rates.items()},
            "config": self.config.model_dump(),
        }
        if self.log:
            self.log.close()
            plot_curves(self.folder / "metrics.csv", self.folder / "curves.png")
            if "test" in result:
                write_classes(self.folder / "classes.csv", result["test"])
                plot_confusion(result["test"]["confusion"], self.data.labels, self.folder / "confusion.png")
            # Must come last: a run with this file is finished and cannot be resumed.
            write_json(self.folder / "result.json", result)
        return result


def _rank(candidate: Mapping[str, Any]) -> tuple[float, float]:
    return float(candidate["accuracy"]), -float(candidate["loss"])


def evaluate(checkpoint: str | Path, dataset: str | Path, *, device: Device = "auto") -> dict[str, Any]:
    """Evaluate a checkpoint on the validation and test splits of a prepared dataset.

    Mels come from the same source as in the training and are normalized with the statistics of the training
    set. Labels are matched by name. Batch norm statistics come from the checkpoint. A checkpoint saved within
    an epoch has no valid ones; it is first recalibrated on the train split of the dataset.

    Args:
        checkpoint: `best.ckpt` or `last.ckpt` in the folder of a run.
        dataset: folder or URL of the prepared dataset.
        device: `auto` uses a GPU if there is one.

    Returns:
        `labels`, `num_classes`, and for each split `accuracy`, `loss`, `samples`, `per_class`, `confusion`.
    """
    place = torch.device(select_device(device))
    network, config, calibrated = load_all(checkpoint)
    options: dict[str, Any] = {"features": config.features, "rank": 0, "world_size": 1}
    data = open_any_split(dataset, ("val", "test", "train"), **options)
    facts, label_map = match_dataset(network, data)
    network.to(place)
    mel = mel_transform(data, place, facts)
    if not calibrated:
        train_data = open_split(dataset, "train", shuffle=True, seed=config.seed, **options)
        recalibrate_batch_norm(network, train_data, config.batch_size, place, mel)
    measured = {}
    for split in ("val", "test"):
        if split in data.info["splits"]:
            data = open_split(dataset, split, **options)
            loader = data.loader(min(config.batch_size, len(data)), num_workers=0)
            measured[split] = evaluate_split(
                network, loader, facts.labels, place, mel=mel, label_map=label_map
            )
    return {"labels": list(facts.labels), "num_classes": len(facts.labels), **measured}
