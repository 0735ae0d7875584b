"""The trainer: epochs of steps and evaluations, on one process or many, and a run that leaves all behind.

A run's folder holds `config.json`, `metrics.csv`, `tensorboard/`, `best.ckpt`, `last.ckpt`, and when it is
done `result.json`, `classes.csv`, `curves.png` and `confusion.png`. Killed at any moment, it goes on from
`last.ckpt` and ends with the same weights and the same log, on as many processes as there are then.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avdata.errors import AvdataError, UsageError
from avdata.progress import Progress
from snnergy.data import AVBatch, AVDataset, diff_settings, open_split
from snnergy.models.network import SNNergy, build
from snnergy.training.checkpoint import load, load_all, load_network, read_config, save, write_json
from snnergy.training.config import TrainConfig, parse, resolve_config
from snnergy.training.diagnostics import diagnose, format_warning
from snnergy.training.distributed import (
    Device,
    broadcast_from_rank0,
    explain_lost_ranks,
    init_fabric,
    sum_over_ranks,
    sync_batch_norm_stats,
)
from snnergy.training.evaluation import (
    check_compatible,
    evaluate_split,
    recalibrate_batch_norm,
    write_classes,
)
from snnergy.training.metrics_log import MetricsLog
from snnergy.training.plots import plot_confusion, plot_curves
from snnergy.training.train_step import TrainStep

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["TrainConfig", "evaluate", "load_network", "train"]

RESUME_MAY_CHANGE = {"workers", "save_every", "accumulate"}
"""Settings that a resumed run may change, for they change no result (but the last bit of a sum)."""

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
    """Train a network on a prepared set and evaluate it once on its test split.

    Under torchrun every process calls this; torchrun's own restarts resume by themselves.

    Args:
        dataset: the prepared set.
        output: the run's folder; with several machines, the first one's.
        config: the settings; None takes our defaults, or those of the run that is resumed.
        progress: called with ("train", done, total), in optimizer steps, by the first process.
        resume: go on from the run's `last.ckpt`.
        device: `auto` takes a GPU where there is one.

    Returns:
        What `result.json` holds: accuracy, loss and per-class recall of the validation and test splits, and
        how it was made.

    Raises:
        AvdataError: the set or the run's folder cannot be used, the loss is not finite, or another process
            of the run was lost.
        UsageError: a name is unknown, or the resumed run has other settings.
    """
    folder, began = Path(output), time.perf_counter()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    resume = resume or (restarted and (folder / "config.json").is_file())
    settled = config or (_settings_of(folder) if resume else resolve_config(None))
    fabric = init_fabric(device, settled.precision, sync_batchnorm=settled.sync_batchnorm)
    with explain_lost_ranks(fabric):
        if fabric.world_size > 1:
            # The run's folder, which a resumed run's settings come from, may be on the first machine alone.
            said = broadcast_from_rank0(fabric, settled.model_dump_json().encode())
            settled = TrainConfig.model_validate_json(said or b"")
        _agree(fabric, lambda: _check_folder(folder, settled, resume=resume))
        run = Trainer(fabric, dataset, folder, settled, progress)
        run.begin(resume=resume)
        run.work()
        return run.finish(began)


class Trainer:
    """What is open while a run is under way."""

    def __init__(
        self, fabric: Fabric, where: str | Path, folder: Path, config: TrainConfig, progress: Progress
    ) -> None:
        self.fabric, self.where, self.folder, self.config = fabric, where, folder, config
        self.progress = progress
        torch.manual_seed(config.seed)
        self.data = self._open("train", shuffle=True)
        # Of its own, for its epoch is always the first.
        self.calibration = self._open("train", shuffle=True)
        self.part = _part(config, fabric.world_size)
        if self.part * int(self.data.info["shape"]["frames"][0]) == 1:
            msg = "a process is given one sample of one step at a time, of which batch norm has no statistics"
            raise UsageError(msg, hint="choose a larger batch_size, or fewer parts (accumulate)")
        self.loader = self.data.loader(
            self.part, num_workers=self.workers, pin_memory=fabric.device.type == "cuda"
        )
        self.epoch_steps = -(-len(self.data) // config.batch_size)
        self.steps = config.steps or config.epochs * self.epoch_steps
        self.every = config.evaluation_interval(self.steps, self.epoch_steps)
        self.validates = "val" in self.data.info["splits"]
        repeated = self.data.info["config"].get("audio", {}).get("layout") == "repeat"
        self.train_step = TrainStep(network_for(config, self.data), config, fabric, repeated=repeated)
        self.best: dict[str, Any] | None = None
        self.evaluated, self.saved = -1, 0
        self.warned: set[str] = set()
        self.log: MetricsLog | None = None

    @property
    def workers(self) -> int:
        # torch's threads and the loader's would fight for the same cores.
        beside = 0 if self.fabric.device.type == "cpu" else 4
        return beside if self.config.workers is None else self.config.workers

    def _open(self, split: str, *, shuffle: bool = False) -> AVDataset:
        rank, world = (None, None) if self.fabric.world_size > 1 else (0, 1)
        return open_split(
            self.where, split, shuffle=shuffle, seed=self.config.seed, rank=rank, world_size=world
        )

    def begin(self, *, resume: bool) -> None:
        """Write down what is to be done, or take up what was."""
        first = self.fabric.is_global_zero
        last = self.folder / "last.ckpt"
        data = last.read_bytes() if first and resume and last.is_file() else None
        held = broadcast_from_rank0(self.fabric, data)
        if held is not None:
            state = load(held, last)
            self.train_step.load_state_dict(state)
            self.loader.load_state_dict(state["loader"])
            self.best, self.evaluated = state["best"], int(state["evaluated"])
            self.saved = self.train_step.step
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            if held is None:
                shape = asdict(self.train_step.network.config)
                about = {"config": self.config.model_dump(), "model": shape, "set": str(self.where)}
                write_json(self.folder / "config.json", about)
            self.log = MetricsLog(self.folder, self.train_step.step)

    def work(self) -> None:
        """Epochs until the steps are made, or nothing gets better any more."""
        while self.train_step.step < self.steps and not self._stalled():
            epoch = self.data.epoch
            self.loader.set_epoch(epoch)
            for batches, before in self._groups():
                real = min(self.config.batch_size, len(self.data) - before)
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
            self.evaluate(self.data.epoch)

    def _save_due(self) -> bool:
        return self.train_step.step - self.saved >= self.config.save_every

    def _inside(self, epoch: int) -> bool:
        # After its last step an epoch may be evaluated; the state to go on from is the one after that. Where
        # that step has fewer parts than others, the loader stands at the next epoch already.
        at = self.loader.state_dict()
        return int(at["epoch"]) == epoch and int(at["samples"]) < len(self.data)

    def _groups(self) -> Iterator[tuple[list[AVBatch], int]]:
        """The parts of each step, and the samples of the epoch that came before it."""
        held: list[AVBatch] = []
        before = int(self.loader.state_dict()["samples"])
        for batch in self.loader:
            held.append(batch)
            if len(held) == self.config.accumulate:
                yield held, before
                held, before = [], before + self.config.batch_size
        if held:
            yield held, before

    def _step(self, batches: list[AVBatch], real: int, epoch: int) -> None:
        learner = self.train_step
        rate = self.config.rate(learner.step, self.steps, self.epoch_steps)
        loss, norm = learner(batches, real=real, epoch=epoch, rate=rate)
        if learner.step % max(1, min(10, self.steps // 20)) == 0:
            loss = sum_over_ranks(self.fabric, loss)
            if self.log:
                self.log.row(
                    step=learner.step, epoch=epoch, lr=rate, train_loss=float(loss), grad_norm=float(norm)
                )
        if self.fabric.is_global_zero:
            self.progress("train", learner.step, self.steps)

    def evaluate(self, epoch: int) -> None:
        """Recalibrate, validate, keep the best, and save."""
        network, step = self.train_step.average, self.train_step.step
        recalibrate_batch_norm(network, self.calibration, self.part, self.fabric.device)
        sync_batch_norm_stats(self.fabric, network)
        self.evaluated = step
        if self.validates:
            rates: dict[str, float] = {}
            found = self._measure(network, "val", rates)
            if self.log:
                self.log.row(step=step, epoch=epoch, val_loss=found["loss"], val_accuracy=found["accuracy"])
                self.log.rates(rates, step)
                self._warn(network, rates)
            reached = {"accuracy": found["accuracy"], "loss": found["loss"], "epoch": epoch, "step": step}
            reached |= {"found": found, "rates": rates}
            if self.best is None or _rank(reached) > _rank(self.best):
                self.best = reached
                self.save(calibrated=True, name="best.ckpt")
        self.save(calibrated=True)

    def _measure(self, network: SNNergy, split: str, rates: dict[str, float] | None = None) -> dict[str, Any]:
        loader = self._open(split).loader(self.part, num_workers=self.workers)
        labels, device = self.data.labels, self.fabric.device
        return evaluate_split(
            network,
            loader,
            labels,
            device,
            add_up=lambda value: sum_over_ranks(self.fabric, value),
            rates=rates,
        )

    def _warn(self, network: SNNergy, rates: dict[str, float]) -> None:
        for sentence, layers in diagnose(network, rates).items():
            new = [layer for layer in layers if f"{sentence}: {layer}" not in self.warned]
            self.warned |= {f"{sentence}: {layer}" for layer in layers}
            if new:
                _log.warning("step %d: %s", self.train_step.step, format_warning(sentence, new, rates))

    def _stalled(self) -> bool:
        patience = self.config.patience
        if patience is None or self.best is None:
            return False
        return (self.evaluated - int(self.best["step"])) / self.epoch_steps >= patience

    def save(self, *, calibrated: bool, name: str = "last.ckpt") -> None:
        """Write a checkpoint; the first process does."""
        self.saved = self.train_step.step
        self.train_step.check_finite()
        if self.fabric.is_global_zero:
            if self.log:
                self.log.flush()
            state = {
                **self.train_step.state_dict(), "loader": self.loader.state_dict(), "best": self.best,
                "evaluated": self.evaluated, "calibrated": calibrated,
            }  # fmt: skip
            save(self.folder / name, state)

    def finish(self, began: float) -> dict[str, Any]:
        """The chosen network on the test split, once, and the pictures."""
        chosen = "best.ckpt" if self.best is not None else "last.ckpt"
        network = self.train_step.average
        path = self.folder / chosen
        data = path.read_bytes() if self.fabric.is_global_zero else None
        held = broadcast_from_rank0(self.fabric, data)
        assert held is not None
        state = load(held, path)
        network.load_state_dict(state["ema"] or state["network"])
        best = dict(self.best or {})
        rates: dict[str, float] = best.pop("rates", {})
        measured = {"val": best.pop("found")} if best else {}
        if "test" in self.data.info["splits"]:
            measured["test"] = self._measure(network, "test", rates)
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
            "rates": {name: round(rate, 6) for name, rate in rates.items()},
            "config": self.config.model_dump(),
        }
        if self.log:
            self.log.close()
            plot_curves(self.folder / "metrics.csv", self.folder / "curves.png")
            if "test" in result:
                write_classes(self.folder / "classes.csv", result["test"], self.data.labels)
                plot_confusion(result["test"]["confusion"], self.data.labels, self.folder / "confusion.png")
            # The last of all: what holds it is finished, and is not gone on with.
            write_json(self.folder / "result.json", result)
        return result


def _rank(reached: Mapping[str, Any]) -> tuple[float, float]:
    return float(reached["accuracy"]), -float(reached["loss"])


def _part(config: TrainConfig, world: int) -> int:
    """Samples that a process takes at once."""
    part, rest = divmod(config.batch_size, world * config.accumulate)
    if rest or not part:
        msg = (
            f"batch_size={config.batch_size} cannot be shared out to {world} processes in"
            f" accumulate={config.accumulate} parts each"
        )
        hint = f"choose a multiple of {world * config.accumulate}; batch_size counts all processes' samples"
        raise UsageError(msg, hint=hint)
    return part


def network_for(config: TrainConfig, data: AVDataset) -> SNNergy:
    """The network that settings ask for, for the labels and pictures of a set."""
    channels = int(data.info["shape"]["frames"][3])
    given = {"num_classes": len(data.labels), "video_channels": channels, "fusion": config.fusion}
    for name in given.keys() & config.model.keys():
        msg = f"model.{name}={config.model[name]!r} would not be heard"
        said = "choose it with --fusion" if name == "fusion" else f"the set says it: {given[name]}"
        raise UsageError(msg, hint=said)
    # JSON and YAML know no tuples.
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in config.model.items()}
    return build(config.preset, **{**shape, **given})


def _settings_of(folder: Path) -> TrainConfig:
    return parse(read_config(folder)["config"])


def _check_folder(folder: Path, config: TrainConfig, *, resume: bool) -> None:
    if (folder / "result.json").exists():
        msg = f"{folder} holds a finished run"
        raise AvdataError(msg, hint="choose another --out, or remove it")
    begun = (folder / "config.json").exists()
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file"
        raise AvdataError(msg, hint="give a folder with --out")
    if not resume:
        if begun:
            msg = f"{folder} holds a run that was not finished"
            raise AvdataError(msg, hint="go on with --resume, choose another --out, or remove it")
        return
    if not begun:
        msg = f"{folder} holds no run to go on with"
        raise AvdataError(msg, hint="leave out --resume to begin")
    there = _settings_of(folder).model_dump(mode="json")
    other = [
        row for row in diff_settings(there, config.model_dump(mode="json")) if row[0] not in RESUME_MAY_CHANGE
    ]
    if other:
        said = ", ".join(f"{name}: {old} there, {new} now" for name, old, new in other)
        msg = f"{folder} was begun with other settings ({said})"
        raise UsageError(msg, hint="leave them out to go on with its own, or choose another --out")


def _agree(fabric: Fabric, check: Callable[[], None]) -> None:
    """Let the first process check, and all fail where it does: none may wait for one that has left."""
    said: tuple[bool, str, str | None] | None = None
    if fabric.is_global_zero:
        try:
            check()
        except AvdataError as error:
            said = (isinstance(error, UsageError), error.message, error.hint)
    if fabric.world_size > 1:
        data = broadcast_from_rank0(fabric, json.dumps(said).encode())
        said = json.loads(data) if data else None
    if said:
        usage, message, hint = said
        raise (UsageError if usage else AvdataError)(message, hint=hint)


def evaluate(checkpoint: str | Path, dataset: str | Path, *, device: Device = "auto") -> dict[str, Any]:
    """Accuracy and loss of a checkpoint on the validation and test splits of a prepared set.

    The batch norms are those of the checkpoint; one that was saved in the middle of an epoch has none that
    would do, and is recalibrated on the set's train split first.

    Returns:
        `labels`, `num_classes`, and for each split `accuracy`, `loss`, `samples`, `per_class`, `confusion`.
    """
    network, config, calibrated = load_all(checkpoint)
    data = open_split(dataset, "train", shuffle=True, seed=config.seed, rank=0, world_size=1)
    check_compatible(network, data)
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    network.to(place)
    if not calibrated:
        recalibrate_batch_norm(network, data, config.batch_size, place)
    measured = {}
    for split in ("val", "test"):
        if split in data.info["splits"]:
            loader = open_split(dataset, split, rank=0, world_size=1).loader(config.batch_size, num_workers=0)
            measured[split] = evaluate_split(network, loader, data.labels, place)
    return {"labels": data.labels, "num_classes": len(data.labels), **measured}
