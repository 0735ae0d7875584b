"""Loop of a training: epochs of steps, evaluations and checkpoints, on one process or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avdata.errors import redact_url
from avdata.interrupts import Terminated, deferred_interrupts
from avdata.progress import Progress
from avdata.storage.atomic import remove_stale_parts
from avdata.streaming.batch import AVBatch
from snnergy.models.network import SNNergy
from snnergy.models.stored import stored_network_errors
from snnergy.training.checkpoint import (
    RUN_FILE,
    load,
    run_settings,
    save,
    write_json,
)
from snnergy.training.config import TrainConfig
from snnergy.training.diagnostics import check_setup, diagnose, format_warning
from snnergy.training.distributed import (
    broadcast_from_rank0,
    sum_over_ranks,
)
from snnergy.training.epoch_lines import EpochLines
from snnergy.training.losses import balanced_weights
from snnergy.training.metrics_log import MetricsLog
from snnergy.training.predictions import Predictions
from snnergy.training.pretrained import initialize
from snnergy.training.run_data import RunData
from snnergy.training.run_result import measure_result, write_result
from snnergy.training.selection import Selection
from snnergy.training.setup import batch_norm_warning, build_network
from snnergy.training.train_step import TrainStep

if TYPE_CHECKING:
    from lightning.fabric import Fabric


_log = logging.getLogger(__name__)


class Trainer:
    """State of a run in progress."""

    def __init__(
        self, fabric: Fabric, where: str | Path, folder: Path, config: TrainConfig, progress: Progress
    ) -> None:
        self.fabric, self.where, self.folder, self.config = fabric, where, folder, config
        torch.manual_seed(config.seed)
        self.sets = sets = RunData(fabric, where, config)
        self.loader = sets.loader()
        self.steps = config.steps or config.epochs * sets.epoch_steps
        self.every = config.evaluation_interval(self.steps, sets.epoch_steps)
        repeated = sets.train.info["config"].get("audio", {}).get("layout") == "repeat"
        network = build_network(config, sets.train)
        if config.init and not (folder / "last.ckpt").is_file():
            known = initialize(network, config.init, sets.facts.labels)
            _log.info("%d of %d labels known to %s", len(known), len(sets.facts.labels), config.init)
        self.train_step = TrainStep(
            network,
            config,
            fabric,
            schedule=lambda step: config.rate(step, self.steps, sets.epoch_steps),
            repeated=repeated,
            mel=sets.mel,
            class_weights=balanced_weights(sets.train.info) if config.class_weights == "balanced" else None,
            per_step=sets.per_step,
        )
        self.selection = Selection(config.patience)
        # Steps of the last evaluation and of the last checkpoint, and the time of that checkpoint.
        self.evaluated, self.saved, self.saved_at = -1, 0, time.monotonic()
        # Where to resume after the last completed step, and the epoch whose evaluation is still due.
        self.position: dict[str, Any] | None = None
        self.epoch = self.sets.train.epoch
        self.pending: int | None = None
        self.is_in_step, self.lr = False, 0.0
        self.lines = EpochLines(progress, self.steps, sets.epoch_steps)
        self.warned: set[str] = set()
        self.log: MetricsLog | None = None

    def begin(self, *, resume: bool) -> None:
        """Write `run.json`, or restore the state of the run to resume."""
        first = self.fabric.is_global_zero
        last = self.folder / "last.ckpt"
        data = last.read_bytes() if first and resume and last.is_file() else None
        content = broadcast_from_rank0(self.fabric, data)
        if content is not None:
            self._restore(content, last)
        elif resume and first:
            _log.warning("No checkpoint to resume in %s: training starts from step 0.", self.folder)
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale_parts(self.folder)
            # Of a finished run that is extended.
            (self.folder / "result.json").unlink(missing_ok=True)
            if content is None or run_settings(self.folder) != self.config:
                self._write_settings()
            model = self.config.model_dump()
            self.log = MetricsLog(self.folder, self.train_step.step, self.config.logger, model)
            small = batch_norm_warning(self.config, self.fabric.world_size)
            for warning in [*([small] if small else []), *check_setup(self.config, self.sets.train.info)]:
                _log.warning(warning)
            self._print_start()

    def _print_start(self) -> None:
        device, network, step = self.fabric.device, self.train_step.network, self.train_step.step
        weights = sum(weight.numel() for weight in network.parameters())
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
        begins = f"resuming after step {step:,}" if step else "starting"
        self.lines.begin(
            f"{begins}: {self.sets.train.num_samples:,} samples, {self.sets.epoch_steps:,} steps per epoch,"
            f" {weights:,} weights, {device}{threads}; compiling kernels ..."
        )

    def _restore(self, content: bytes, path: Path) -> None:
        state = load(content, path)
        with stored_network_errors(path):
            self.train_step.load_state_dict(state)
            self.selection.load_state_dict(state)
            self.evaluated, position = int(state["evaluated"]), state["loader"]
            pending = state.get("pending")
            self.pending = None if pending is None else int(pending)
        self.loader.load_state_dict(position)
        self.saved = self.train_step.step

    def _write_settings(self) -> None:
        about = {
            "config": self.config.model_dump(), "model": asdict(self.train_step.network.config),
            "dataset": _location(self.where), "facts": self.sets.facts.dump(),
            "processes": self.fabric.world_size, "threads": torch.get_num_threads(),
        }  # fmt: skip
        write_json(self.folder / RUN_FILE, about)

    def work(self) -> None:
        """Run epochs until all steps are done, or validation has not improved for `patience` evaluations.

        KeyboardInterrupt and `Terminated` leave it after the step in progress, whose state is saved.
        """
        try:
            if self.pending is not None:
                self.evaluate(self.pending)
            while self.train_step.step < self.steps and not self.selection.is_stalled:
                self.epoch = self.sets.train.epoch
                self._run_epoch(self.epoch)
            if self.evaluated != self.train_step.step:
                self.evaluate(self.epoch)
        except (KeyboardInterrupt, Terminated):
            self._save_interrupted()
            raise

    def _run_epoch(self, epoch: int) -> None:
        total = self.sets.train.num_samples
        self.loader.set_epoch(epoch)
        for batches, before in self._groups():
            with deferred_interrupts():
                self._step(batches, min(self.config.batch_size, total - before), epoch)
            if self.train_step.step == self.steps:
                return
            if self._inside(epoch) and self._save_due():
                self.save(calibrated=False)
        if (epoch + 1) % self.every == 0:
            self.evaluate(epoch)
            return
        self._print_epoch(epoch, None)
        if self._save_due():
            self.position = self.loader.state_dict()
            self.save(calibrated=False)

    def _save_due(self) -> bool:
        # Clocks differ between processes, but only rank 0 writes, and `save` needs no other process.
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.train_step.step - self.saved >= self.config.save_every or (
            self.fabric.is_global_zero and minutes >= self.config.save_minutes
        )

    def _inside(self, epoch: int) -> bool:
        # After the last step of an epoch an evaluation may be due; the state to resume from is the one
        # after it. If that step has fewer parts than the others, the loader is already at the next epoch.
        position = self.position
        assert position is not None
        return int(position["epoch"]) == epoch and int(position["samples"]) < self.sets.train.num_samples

    def _save_interrupted(self) -> None:
        """Save the state after the last step, unless a second signal ended a step halfway."""
        step, epoch = self.train_step.step, self.epoch
        if self.position is None or self.is_in_step or step == self.saved:
            return
        is_due = step == self.steps or (not self._inside(epoch) and (epoch + 1) % self.every == 0)
        self.pending = epoch if is_due and self.evaluated != step else None
        self.save(calibrated=False)
        if self.fabric.is_global_zero:
            _log.warning("Saved %s after step %d.", self.folder / "last.ckpt", step)

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
        train_step = self.train_step
        self.lr = train_step.rate
        self.is_in_step = True
        loss, norm = train_step(batches, real=real, epoch=epoch)
        self.position, self.is_in_step = self.loader.state_dict(), False
        if train_step.step % max(1, min(10, self.steps // 20)) == 0:
            loss = sum_over_ranks(self.fabric, loss)
            if self.log:
                values = {"lr": self.lr, "train_loss": float(loss), "grad_norm": float(norm)}
                self.log.row(step=train_step.step, epoch=epoch, **values)
        if self.fabric.is_global_zero:
            self.lines.count(train_step.step)

    def evaluate(self, epoch: int) -> None:
        """Recalibrate, validate, and save `last.ckpt`, and `best.ckpt` if validation improved."""
        network = self.train_step.average
        self.sets.recalibrate(network)
        rates: dict[str, float] = {}
        measured = self.sets.measure(network, "val", rates) if "val" in self.sets.splits else None
        # A signal here would separate the row in the log from the checkpoint.
        with deferred_interrupts():
            self.evaluated, self.pending = self.train_step.step, None
            self.position = self.loader.state_dict()
            if measured is not None:
                self._select(epoch, measured, rates)
            self.save(calibrated=True)
        self._print_epoch(epoch, measured)

    def _select(self, epoch: int, measured: dict[str, Any], rates: dict[str, float]) -> None:
        """Log a validation, and save `best.ckpt` if it is the best one."""
        step, accuracy, loss = self.train_step.step, measured["accuracy"], measured["loss"]
        if self.log:
            self.log.row(step=step, epoch=epoch, val_loss=loss, val_accuracy=accuracy)
            self.log.rates(rates, step)
            self._warn(self.train_step.average, rates)
        candidate = {"accuracy": accuracy, "score": measured[self.config.select], "loss": loss}
        candidate |= {"epoch": epoch, "step": step, "measured": measured, "rates": rates}
        is_warm = step > self.config.warmup_steps(self.steps, self.sets.epoch_steps)
        if self.selection.add(candidate, is_warm=is_warm):
            self.save(calibrated=True, name="best.ckpt")

    def _print_epoch(self, epoch: int, measured: dict[str, Any] | None) -> None:
        """Print the metrics of an epoch, and log its training accuracy, over all processes."""
        tally = sum_over_ranks(self.fabric, self.train_step.tally).tolist()
        self.train_step.tally.zero_()
        if not self.log or not tally[2]:  # evaluated at once after a resume
            return
        step, loss, accuracy = self.train_step.step, tally[0] / tally[3], tally[1] / tally[2]
        self.log.scalars(step, train_accuracy=accuracy)
        self.lines.print(
            epoch=epoch, step=step, loss=loss, accuracy=accuracy, lr=self.lr, measured=measured,
            best=self.selection.best,
        )  # fmt: skip

    def _warn(self, network: SNNergy, rates: dict[str, float]) -> None:
        for sentence, layers in diagnose(network, rates).items():
            new = [layer for layer in layers if f"{sentence}: {layer}" not in self.warned]
            self.warned |= {f"{sentence}: {layer}" for layer in layers}
            if new:
                _log.warning("step %d: %s", self.train_step.step, format_warning(sentence, new, rates))

    def save(self, *, calibrated: bool, name: str = "last.ckpt") -> None:
        """Write a checkpoint, on rank 0."""
        self.saved, self.saved_at = self.train_step.step, time.monotonic()
        self.train_step.check_finite()
        if self.fabric.is_global_zero:
            if self.log:
                self.log.flush()
            state = {
                **self.train_step.state_dict(), **self.selection.state_dict(),
                "loader": self.position, "evaluated": self.evaluated, "pending": self.pending,
                "calibrated": calibrated, "facts": self.sets.facts.dump(),
            }  # fmt: skip
            save(self.folder / name, state)

    def finish(self, began: float) -> dict[str, Any]:
        """Evaluate the selected network on the test split and write results and plots."""
        network, best, predictions = self.train_step.average, self.selection.best, Predictions()
        result = {
            **measure_result(self.fabric, network, self.sets, self.folder, best, predictions),
            "steps": self.train_step.step,
            "seconds": round(time.perf_counter() - began, 1),
            "params": sum(weight.numel() for weight in network.parameters()),
            "processes": self.fabric.world_size,
            "threads": torch.get_num_threads(),
            "device": str(self.fabric.device),
            "config": self.config.model_dump(),
        }
        if self.log:
            self.log.close()
            write_result(self.folder, result, predictions)
        return result


def _location(where: str | Path) -> str:
    """Return where a dataset is, from any current folder and without credentials."""
    return str(Path(where).absolute()) if Path(where).exists() else redact_url(where)
