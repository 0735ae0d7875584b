"""The trainer: Lightning drives, the settings are one frozen model, and a run leaves all that it was behind.

A run's folder holds `config.json`, `metrics.csv`, `best.ckpt`, `last.ckpt`, `curves.png`, `confusion.png` and
`result.json`.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from avdata.errors import AvdataError
from avdata.stream import AVBatch, AVDataset, Loader
from snnergy.data import Batch, open_split, pairs, to_batch
from snnergy.model import ModelConfig, SNNergy, build, recalibrate
from snnergy.pictures import draw_confusion, draw_curves

RECALIBRATION_BATCHES = 16

Progress = Callable[[str, int, int], None]


class TrainConfig(BaseModel):
    """How a network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "nano"
    fusion: str = "cmqka"
    steps: int | None = Field(None, ge=1, description="optimiser steps; stands above epochs")
    epochs: int = Field(200, ge=1)
    batch_size: int = Field(32, ge=1, description="samples a step of one process")
    lr: float = Field(2e-3, gt=0, description="the schedule's peak")
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.3, gt=0, lt=1, description="share of the steps in which the rate rises")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    seed: int = 42
    workers: int = Field(1, ge=0, description="threads that make batches ahead")


class Trainee(lightning.LightningModule):
    """A network with its loss, optimiser and evaluation."""

    def __init__(self, network: SNNergy, config: TrainConfig, steps: int, calibration: AVDataset) -> None:
        super().__init__()
        self.network, self.settings, self.steps = network, config, steps
        self._calibration = calibration
        self._seen: dict[str, list[Tensor]] = {"logits": [], "label": []}

    def transfer_batch_to_device(self, batch: AVBatch, device: torch.device, dataloader_idx: int) -> Batch:
        """The stream's batch in the network's layout, on the device."""
        return to_batch(batch, device)

    def training_step(self, made: Batch, batch_idx: int) -> Tensor:
        """Weighted cross-entropy of a batch."""
        logits = self.network(made.audio, made.video)
        losses = functional.cross_entropy(
            logits, made.label, label_smoothing=self.settings.label_smoothing, reduction="none"
        )
        loss = (losses * made.weight).sum() / made.weight.sum().clamp(min=1)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(made.label))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Recalibrate the batch norms on training batches: without it a young network is silent."""
        self.calibrate()

    def calibrate(self) -> None:
        """Set the batch norms to what the layers see now."""
        loader = self._calibration.loader(self.settings.batch_size, num_workers=0)
        recalibrate(self.network, pairs(loader, RECALIBRATION_BATCHES, self.device))

    def validation_step(self, made: Batch, batch_idx: int) -> None:
        """Collect logits; padding is dropped."""
        real = made.weight > 0
        self._seen["logits"].append(self.network(made.audio, made.video)[real])
        self._seen["label"].append(made.label[real])

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and loss of the validation split."""
        logits, label = (torch.cat(self._seen[name]) for name in ("logits", "label"))
        for held in self._seen.values():
            held.clear()
        accuracy = (logits.argmax(1) == label).float().mean()
        self.log("val_accuracy", accuracy, prog_bar=True, sync_dist=True)
        self.log("val_loss", functional.cross_entropy(logits, label), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW on a one-cycle schedule by steps."""
        groups = self.network.parameter_groups(self.settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.settings.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.settings.lr, total_steps=self.steps, pct_start=self.settings.warmup
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Epochs(lightning.Callback):
    """Gives each epoch its own order."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._loader.set_epoch(trainer.current_epoch)


class _Steps(lightning.Callback):
    """Tells how far the training is."""

    def __init__(self, steps: int, progress: Progress) -> None:
        self._steps, self._progress = steps, progress

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any, **options: Any) -> None:
        if trainer.is_global_zero:
            self._progress("train", trainer.global_step, self._steps)


def train(
    where: str | Path,
    out: str | Path,
    config: TrainConfig,
    *,
    progress: Progress = lambda stage, done, total: None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a network on a prepared set and evaluate it once on its test split.

    Args:
        where: the prepared set.
        out: the run's folder.
        config: the settings.
        progress: called with ("train", done, total), in optimiser steps.
        resume: go on from the run's `last.ckpt`.

    Returns:
        What `result.json` holds: accuracy, loss and per-class accuracy of the test split, and how it was
        made.

    Raises:
        AvdataError: the set or the run's folder cannot be used.
        UsageError: a name is unknown.
    """
    began = time.perf_counter()
    folder = Path(out)
    last = folder / "last.ckpt"
    if (folder / "result.json").exists() and not resume:
        msg = f"{folder} holds a finished run"
        raise AvdataError(msg, hint="choose another --out, or remove it")
    if resume and not last.is_file():
        msg = f"{folder} holds no last.ckpt to go on from"
        raise AvdataError(msg, hint="leave out --resume to begin")
    _quiet()
    lightning.seed_everything(config.seed, verbose=False)
    data = open_split(where, "train", shuffle=True, seed=config.seed)
    loader = data.loader(
        config.batch_size, num_workers=config.workers, drop_last=len(data) >= config.batch_size
    )
    steps = config.steps or config.epochs * len(loader)
    network = _network(config, data)
    trainee = Trainee(network, config, steps, open_split(where, "train", shuffle=True, seed=config.seed))
    held_out = "val" if "val" in data.info["splits"] else None
    trainer = _trainer(folder, config, steps, loader, progress=progress, select=held_out is not None)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(
        folder / "config.json", {**config.model_dump(), "model": asdict(network.config), "set": str(where)}
    )
    validation = _evaluation_loader(where, held_out, config) if held_out else None
    trainer.fit(trainee, loader, validation, ckpt_path=str(last) if resume else None, weights_only=True)
    trainee.calibrate()
    trainer.save_checkpoint(last)
    best = folder / "best.ckpt"
    chosen = best if best.is_file() else last
    result = {
        **evaluate(chosen, where),
        "steps": trainer.global_step,
        "seconds": round(time.perf_counter() - began, 1),
        "params": sum(weight.numel() for weight in network.parameters()),
        "chosen": chosen.name,
        "config": config.model_dump(),
    }
    _write_json(folder / "result.json", result)
    draw_curves(folder / "metrics.csv", folder / "curves.png")
    if "test" in result:
        draw_confusion(result["test"]["confusion"], result["labels"], folder / "confusion.png")
    return result


def _network(config: TrainConfig, data: AVDataset) -> SNNergy:
    channels = int(data.info["shape"]["frames"][3])
    return build(config.preset, num_classes=len(data.labels), video_channels=channels, fusion=config.fusion)


def _trainer(
    folder: Path, config: TrainConfig, steps: int, loader: Loader, *, progress: Progress, select: bool
) -> lightning.Trainer:
    # About twenty evaluations a run; each costs a recalibration.
    epochs = max(1, math.ceil(steps / max(len(loader), 1)))
    keep = ModelCheckpoint(
        folder, filename="best", monitor="val_accuracy" if select else None, mode="max",
        enable_version_counter=False, save_last=True,
    )  # fmt: skip
    return lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=config.clip,
        check_val_every_n_epoch=max(1, epochs // 20),
        num_sanity_val_steps=0,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=max(1, min(10, steps // 20)),
        callbacks=[_Epochs(loader), _Steps(steps, progress), keep],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accelerator="auto",
    )


def _evaluation_loader(where: str | Path, split: str, config: TrainConfig) -> Loader:
    return open_split(where, split).loader(config.batch_size, num_workers=config.workers)


def load_network(checkpoint: str | Path) -> tuple[SNNergy, TrainConfig]:
    """The network of a checkpoint, in evaluation mode, and how it was trained.

    Raises:
        AvdataError: it cannot be read, or its run's config.json is gone.
    """
    path = Path(checkpoint)
    try:
        said = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        msg = f"{path} cannot be read ({error})"
        raise AvdataError(msg, hint="give a run's folder, or a checkpoint beside its config.json") from error
    shape: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in said.pop("model").items()
    }
    said.pop("set")
    network = SNNergy(ModelConfig(**shape))
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    return network.eval(), TrainConfig(**said)


def evaluate(checkpoint: str | Path, where: str | Path) -> dict[str, Any]:
    """Accuracy and loss of a checkpoint on the validation and test splits of a prepared set.

    The batch norms are those of the checkpoint, which were recalibrated before it was saved.

    Returns:
        `labels`, `num_classes`, and for each split `accuracy`, `loss`, `samples`, `per_class`, `confusion`.
    """
    network, config = load_network(checkpoint)
    info = open_split(where, "train").info
    measured = {
        split: _measure(
            network, _evaluation_loader(where, split, config), len(info["labels"]), info["labels"]
        )
        for split in ("val", "test")
        if split in info["splits"]
    }
    return {"labels": list(info["labels"]), "num_classes": len(info["labels"]), **measured}


@torch.no_grad()
def _measure(network: SNNergy, loader: Loader, classes: int, labels: list[str]) -> dict[str, Any]:
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    loss = 0.0
    for batch in loader:
        made = to_batch(batch)
        real = made.weight > 0
        logits, label = network(made.audio, made.video)[real], made.label[real]
        loss += float(functional.cross_entropy(logits, label, reduction="sum"))
        confusion.index_put_((label, logits.argmax(1)), torch.ones_like(label), accumulate=True)
    total, right = int(confusion.sum()), confusion.diagonal()
    held = confusion.sum(1)
    per_class: Mapping[str, float | None] = {
        name: round(float(right[index] / held[index]), 6) if held[index] else None
        for index, name in enumerate(labels)
    }
    return {
        "accuracy": round(float(right.sum()) / max(total, 1), 6),
        "loss": round(loss / max(total, 1), 6),
        "samples": total,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def _quiet() -> None:
    """Lightning's notes on its own loaders and loggers do not concern a user of this trainer."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
