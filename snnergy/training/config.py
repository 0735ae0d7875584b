"""Typed settings of a training and the training presets.

A training preset is a set of default settings: ours, or those of an author's public code. A file or the
command line can change every setting. The resolved settings are stored in the run's run.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from avdata.config.overrides import merge_overrides
from avdata.config.schema import format_validation_error
from avdata.errors import UsageError, did_you_mean, shorten
from snnergy.models.config import check_choice

LR_PER_64_SAMPLES = 5e-4

EXPONENT = re.compile(r"[+-]?\d+e[+-]?\d+", re.IGNORECASE)
"""Number without a dot, as `1e-3`."""

Beta = Annotated[float, Field(ge=0, lt=1)]

Epoch = Annotated[int, Field(ge=0)]


class AugmentConfig(BaseModel):
    """Augmentation of training samples. Each change is random, the values are its maxima."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bands: float = Field(0.0, ge=0, le=1, description="SpecAugment: maximum masked share of the mel bands")
    columns: float = Field(0.0, ge=0, le=1, description="SpecAugment: maximum masked share of the columns")
    shift: int = Field(0, ge=0, description="maximum shift in time of both modalities, in steps")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    rotate: float = Field(0.0, ge=0, le=180, description="maximum rotation in degrees, in both directions")
    jitter: float = Field(0.0, ge=0, lt=1, description="maximum relative change of brightness and contrast")
    crop: float = Field(
        0.0, ge=0, lt=1, description="maximum share of a frame's area outside a random crop, which is resized"
    )
    erase: float = Field(0.0, ge=0, lt=1, description="maximum share of a frame's area that is set to black")
    hide: float = Field(
        0.0, ge=0, le=1, description="modality dropout: probability of masking audio or video of a sample"
    )


class TrainConfig(BaseModel):
    """Settings of a training. The defaults are the training preset `snnergy`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train_preset: str = Field("snnergy", description="training preset that supplied the defaults")
    model: str = Field(
        "small", description="model preset: nano (for tests), tiny, small, base, large, paper_like"
    )
    fusion: str = Field("cmqka", description="fusion method; see below")
    model_options: dict[str, Any] = Field(
        default_factory=dict, description="fields of ModelConfig that differ from the model preset"
    )
    init: str | None = Field(
        None, description="trained network to start from: run, checkpoint, folder, or user/repo on the Hub"
    )
    features: Literal["stored", "waveform"] = Field(
        "stored", description="waveform: compute the mels on the device, from waveforms of the dataset"
    )
    targets: Literal["auto", "clip", "step"] = Field(
        "auto",
        description="classify clips or steps; auto: steps if the dataset labels them, as AVE does",
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps; takes precedence over epochs")
    epochs: int = Field(200, ge=1, description="passes over the train split")
    batch_size: int = Field(64, ge=1, description="samples per optimizer step, over all processes and parts")
    accumulate: int = Field(
        1, ge=1, description="gradient accumulation: parts per process and step; batch norms see one part"
    )
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; None: 5e-4 per 64 samples of a step"
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="schedule of the learning rate after the warm-up"
    )
    warmup_epochs: float | None = Field(
        10, ge=0, description="warm-up epochs, at most 0.3 of the run; None: 0.3 of the run"
    )
    start_lr: float = Field(1e-5, ge=0, description="learning rate at the start of the warm-up")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine")
    weight_decay: float = Field(
        0.05, ge=0, description="weight decay; not on norms, biases and residual weights"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="coefficients of AdamW")
    clip: float | None = Field(1.0, gt=0, description="maximum norm of the unscaled gradient")
    loss: Literal["ce", "tet"] = Field(
        "ce",
        description="ce: cross-entropy of the mean over steps; tet: mean of the steps' cross-entropies",
    )
    aux_loss: float = Field(
        0.0, ge=0, description="weight of the loss of each unimodal head; 0: the network has none"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weights of labels in the loss; balanced: inversely proportional to their number"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="label smoothing")
    mixup: float = Field(0.2, ge=0, description="alpha of mixup's Beta distribution; 0 disables mixup")
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of CutMix's Beta distribution; 0 disables it; with mixup, a step draws one",
    )
    augment: AugmentConfig = AugmentConfig(
        bands=0.125, columns=0.125, shift=0, flip=0.5, rotate=5.0, jitter=0.2
    )
    ogm_ge: float | None = Field(
        None, gt=0, description="alpha of OGM-GE (0.8 for CREMA-D); None disables it"
    )
    ogm_ge_epochs: tuple[Epoch, Epoch] = Field(
        (0, 50), description="first and last epoch in which OGM-GE modifies gradients, counted from 0"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, used for evaluation"
    )
    precision: Literal["auto", "32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU, otherwise 32"
    )
    compile: bool = Field(False, description="torch.compile for training steps: minutes of compilation first")
    sync_batchnorm: bool = Field(False, description="synchronize batch norms over all GPUs")
    patience: int | None = Field(
        10,
        ge=1,
        description="stop after this many evaluations without improvement, counted after the warm-up",
    )
    select: Literal["accuracy", "macro_f1", "uar"] = Field(
        "accuracy", description="score on the val split that selects best.ckpt; of equal ones the lower loss"
    )
    eval_every: int | None = Field(
        None, ge=1, description="epochs between evaluations; None: at most 50 evaluations per run"
    )
    save_every: int = Field(200, ge=1, description="steps between two writes of last.ckpt")
    save_minutes: float = Field(5.0, gt=0, description="minutes after which last.ckpt is written anyway")
    logger: Literal["none", "csv", "wandb", "mlflow"] = Field(
        "none", description="logger of Lightning, in addition to metrics.csv and TensorBoard"
    )
    seed: int = Field(42, ge=0, description="seed of weights, sample order and augmentation")
    workers: int | None = Field(
        None, ge=0, description="loader threads that prefetch batches; None: 0 on the CPU, 4 with a GPU"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="threads on the CPU; None: as many as there are idle cores when the run begins",
    )

    def batch_norm_size(self, processes: int) -> int:
        """Return the number of samples that a batch norm normalizes together, which changes the training.

        >>> TrainConfig(batch_size=64, accumulate=2).batch_norm_size(processes=4)
        8
        """
        return self.batch_size // (self.accumulate * (1 if self.sync_batchnorm else processes))

    @field_validator("precision", mode="before")
    @classmethod
    def _parse_precision(cls, value: object) -> object:
        # YAML reads `--set precision=32` as a number.
        return str(value) if value == 32 and not isinstance(value, bool) else value

    @field_validator("model_options", mode="before")
    @classmethod
    def _read_exponents(cls, options: object) -> object:
        """Read `1e-3` as a number, which YAML takes for text because it has no dot."""
        if not isinstance(options, Mapping):
            return options
        return {
            name: float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
            for name, value in options.items()
        }

    @property
    def peak_lr(self) -> float:
        """Peak learning rate."""
        return self.lr or LR_PER_64_SAMPLES * self.batch_size / 64

    def describe(self) -> str:
        """Return all settings on one line, with the learning rate resolved.

        >>> TrainConfig(steps=250).describe()[:55]
        'train_preset=snnergy model=small fusion=cmqka init=null'
        """
        values = {**self.model_dump(), "lr": self.peak_lr}
        # The other one has no effect.
        values.pop("epochs" if self.steps else "steps")
        for group in ("model_options", "augment"):
            values |= {f"{group}.{name}": value for name, value in values.pop(group).items()}
        return " ".join(f"{name}={_show(value)}" for name, value in values.items())

    def rate(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the learning rate of optimizer step `step` (from 0) of `steps`.

        >>> config = TrainConfig(lr=1.0, start_lr=0.0, min_lr=0.0, warmup_epochs=1)
        >>> print(*(round(config.rate(step, 20, 4), 3) for step in (0, 2, 4, 12, 20)))
        0.0 0.5 1.0 0.5 0.0
        """
        peak, warmup = self.peak_lr, self.warmup_steps(steps, steps_per_epoch)
        if step < warmup:
            low = min(self.start_lr, peak)
            return low + (peak - low) * step / warmup
        if self.schedule == "constant":
            return peak
        low, done = min(self.min_lr, peak), (step - warmup) / max(steps - warmup, 1)
        return low + (peak - low) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def warmup_steps(self, steps: int, steps_per_epoch: int) -> float:
        """Return the number of optimizer steps of the warm-up."""
        longest = 0.3 * steps
        return longest if self.warmup_epochs is None else min(self.warmup_epochs * steps_per_epoch, longest)

    def evaluation_interval(self, steps: int, steps_per_epoch: int) -> int:
        """Epochs from one evaluation to the next.

        Each costs a recalibration of the batch norms, ten batches forward, so short epochs share one.
        """
        if self.eval_every is not None:
            return self.eval_every
        epochs = steps / steps_per_epoch
        return max(1, math.ceil(epochs / 50), math.ceil(min(60, steps / 2) / steps_per_epoch))


_NO_AUGMENT = AugmentConfig().model_dump()

TRAIN_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Ours: MODEL.md §7, the last column.
    "snnergy": {},
    # For synthetic datasets, first runs and anything of a few hundred steps: no regularization.
    "quick": {
        "batch_size": 32, "lr": 2e-3, "warmup_epochs": None, "start_lr": 8e-5, "min_lr": 0.0,
        "label_smoothing": 0.0, "mixup": 0.0, "patience": None, "augment": _NO_AUGMENT,
    },
    # Public code of the paper's first author, linear_attention_res_learning (26572f8): fusion training. It
    # clips before unscaling; here clipping comes after. Whether fp16 was enabled is not known.
    "la": {
        "batch_size": 8, "lr": 5e-5, "schedule": "constant", "warmup_epochs": 0, "weight_decay": 1e-4,
        "clip": 5.0, "label_smoothing": 0.0, "mixup": 0.0, "patience": None, "augment": _NO_AUGMENT,
    },
    # Public code of the same author, snn_multi_modal: unimodal training. Where its scripts differ (decay
    # 0.2, 0.05 or 0.01; 100 to 180 epochs; patience 25 to 40) this is one of the values. Cutmix is omitted;
    # fp16 works on GPUs only (`precision=fp16`); the eight time steps are a setting of the dataset. Its
    # patience counts epochs, so that every epoch is evaluated.
    "mm": {
        "batch_size": 64, "lr": 5e-4, "warmup_epochs": 20, "epochs": 180, "weight_decay": 0.05,
        "label_smoothing": 0.1, "mixup": 0.2, "patience": 40, "eval_every": 1,
        "augment": {**_NO_AUGMENT, "flip": 0.5, "rotate": 5.0, "jitter": 0.2},
    },
}  # fmt: skip


def resolve_config(train_preset: str | None, *overrides: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a training preset with overrides; later overrides take precedence.

    >>> resolve_config("la", {"epochs": 3}).lr, resolve_config(None, {"steps": 250}).train_preset
    (5e-05, 'snnergy')

    Args:
        train_preset: one of `TRAIN_PRESETS`; None: the one in `overrides`, otherwise `snnergy`.
        overrides: nested settings.

    Raises:
        UsageError: unknown name or invalid value; the message names the setting.
    """
    merged: dict[str, Any] = {}
    for override in overrides:
        merged = merge_overrides(merged, override)
    name = train_preset or merged.get("train_preset") or "snnergy"
    check_choice(name, TRAIN_PRESETS, "training preset")
    base = merge_overrides(TrainConfig().model_dump(), TRAIN_PRESETS[name])
    return parse({**merge_overrides(base, merged), "train_preset": name})


def parse(values: Mapping[str, Any]) -> TrainConfig:
    """Return validated settings from a mapping, such as `config` in a run's run.json.

    Raises:
        UsageError: unknown key or invalid value; the message names the setting.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where, value = shorten(".".join(str(part) for part in first["loc"])), shorten(repr(first["input"]))
        if first["type"] == "extra_forbidden":
            msg = f"Unknown training setting {where}."
            raise UsageError(msg, hint=did_you_mean(where, _names())) from None
        if where == "augment":
            msg = f"augment is a group of settings, not {value}."
            raise UsageError(msg, hint="Set one of the group, for example augment.flip=0") from None
        msg = f"Invalid training setting {where}={value}: {format_validation_error(first)}"
        raise UsageError(msg) from None


def _show(value: object) -> str:
    """Return a value as `--set` takes it, without spaces."""
    return json.dumps(value, separators=(",", ":")).strip('"')


def _names() -> list[str]:
    inner = [f"augment.{name}" for name in AugmentConfig.model_fields]
    return [*TrainConfig.model_fields, *inner]
