"""The typed settings of a training, the regimes that are known by name, and how settings are laid over them.

A regime is a column of a table: ours, or what an author's public code does. Every setting of it can be
changed by a file or on the command line; what was settled is in the run's config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from avdata.config.overrides import merge_overrides
from avdata.config.schema import format_validation_error
from avdata.errors import UsageError, did_you_mean

LR_PER_64_SAMPLES = 5e-4

Beta = Annotated[float, Field(ge=0, lt=1)]


class AugmentConfig(BaseModel):
    """How training samples are changed: by draws from the seed, the epoch and the sample's key alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bands: int = Field(0, ge=0, description="SpecAugment: mel bands hidden, at most")
    columns: int = Field(0, ge=0, description="SpecAugment: columns hidden, at most")
    shift: int = Field(0, ge=0, description="steps by which sound and sight are rolled together, at most")
    flip: float = Field(0.0, ge=0, le=1, description="how often left and right are exchanged")
    rotate: float = Field(0.0, ge=0, le=180, description="degrees, at most, either way")
    jitter: float = Field(0.0, ge=0, lt=1, description="change of brightness and contrast, at most")


class TrainConfig(BaseModel):
    """How a network is trained. The defaults are our regime (`snnergy`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    regime: str = Field("snnergy", description="what the settings were laid over")
    preset: str = Field("nano", description="size of the network: nano, tiny, small, base, large, paper_like")
    fusion: str = Field("cmqka", description="how sound and sight meet; see below")
    model: dict[str, Any] = Field(default_factory=dict, description="fields of ModelConfig to change")
    steps: int | None = Field(None, ge=1, description="optimizer steps; stands above epochs")
    epochs: int = Field(200, ge=1, description="passes over the train split")
    batch_size: int = Field(64, ge=1, description="samples an optimizer step, over all processes and parts")
    accumulate: int = Field(1, ge=1, description="parts in which a process takes its share of a step")
    lr: float | None = Field(None, gt=0, description="the peak; None is 5e-4 for every 64 samples of a step")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the rate, after its rise")
    warmup_epochs: float | None = Field(
        10, ge=0, description="epochs in which the rate rises, never more than 0.3 of the run; None is 0.3"
    )
    start_lr: float = Field(1e-5, ge=0, description="where the rise begins")
    min_lr: float = Field(1e-5, ge=0, description="where the cosine ends")
    weight_decay: float = Field(0.05, ge=0, description="not on norms, biases and residual weights")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of AdamW")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the unscaled gradient")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of a label given to all")
    mixup: float = Field(0.2, ge=0, description="alpha of the Beta law; 0 is off")
    augment: AugmentConfig = AugmentConfig(bands=16, columns=16, shift=0, flip=0.5, rotate=5.0, jitter=0.2)
    ogm_ge: float | None = Field(None, gt=0, description="alpha of OGM-GE; 0.8 for CREMA-D")
    ema: float | None = Field(None, gt=0, lt=1, description="evaluate a moving average of the weights")
    precision: Literal["auto", "32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU, else 32"
    )
    sync_batchnorm: bool = Field(False, description="batch norms over all GPUs")
    patience: int | None = Field(40, ge=1, description="epochs without a better validation before it stops")
    eval_every: int | None = Field(None, ge=1, description="epochs; None: 50 evaluations a run at most")
    save_every: int = Field(200, ge=1, description="steps between two writings of last.ckpt")
    seed: int = Field(42, ge=0, description="of weights, order and augmentation")
    workers: int | None = Field(
        None, ge=0, description="threads that make batches ahead; None: 0 on the CPU, 4 beside a GPU"
    )

    def rate(self, step: int, steps: int, steps_an_epoch: int) -> float:
        """The learning rate of optimizer step `step` (from 0) of `steps`.

        >>> config = TrainConfig(lr=1.0, start_lr=0.0, min_lr=0.0, warmup_epochs=1)
        >>> [round(config.rate(step, 20, 4), 3) for step in (0, 2, 4, 12, 20)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        """
        peak = self.lr or LR_PER_64_SAMPLES * self.batch_size / 64
        longest = 0.3 * steps
        rise = longest if self.warmup_epochs is None else min(self.warmup_epochs * steps_an_epoch, longest)
        if step < rise:
            low = min(self.start_lr, peak)
            return low + (peak - low) * step / rise
        if self.schedule == "constant":
            return peak
        low, done = min(self.min_lr, peak), (step - rise) / max(steps - rise, 1)
        return low + (peak - low) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def evaluation_interval(self, steps: int, steps_an_epoch: int) -> int:
        """Epochs from one evaluation to the next.

        Each costs a recalibration of the batch norms, ten batches forward, so short epochs share one.
        """
        if self.eval_every is not None:
            return self.eval_every
        epochs = steps / steps_an_epoch
        return max(1, math.ceil(epochs / 50), math.ceil(min(60, steps / 2) / steps_an_epoch))


_NO_AUGMENT = AugmentConfig().model_dump()

TRAIN_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Ours: MODEL.md §7, the last column.
    "snnergy": {},
    # For generated sets, first runs and anything of a few hundred steps: no part of it hides what is learnt.
    "quick": {
        "batch_size": 32, "lr": 2e-3, "warmup_epochs": None, "start_lr": 8e-5, "min_lr": 0.0,
        "label_smoothing": 0.0, "mixup": 0.0, "patience": None, "augment": _NO_AUGMENT,
    },
    # Public code of the paper's first author, linear_attention_res_learning (26572f8): fusion training. Its
    # clipping came before unscaling; here it comes after. Whether fp16 was on is not known.
    "la": {
        "batch_size": 8, "lr": 5e-5, "schedule": "constant", "warmup_epochs": 0, "weight_decay": 1e-4,
        "clip": 5.0, "label_smoothing": 0.0, "mixup": 0.0, "patience": None, "augment": _NO_AUGMENT,
    },
    # Public code of the same author, snn_multi_modal: unimodal training. Where its scripts differ from one
    # another (decay 0.2, 0.05 or 0.01; 100 to 180 epochs; patience 25 to 40) one of the values stands here.
    # Its cutmix is left out; its fp16 is for GPUs alone (`precision=fp16`); its eight steps are the set's.
    "mm": {
        "batch_size": 64, "lr": 5e-4, "warmup_epochs": 20, "epochs": 180, "weight_decay": 0.05,
        "label_smoothing": 0.1, "mixup": 0.2, "patience": 40,
        "augment": {**_NO_AUGMENT, "flip": 0.5, "rotate": 5.0, "jitter": 0.2},
    },
}  # fmt: skip


def resolve_config(regime: str | None, *overrides: Mapping[str, Any]) -> TrainConfig:
    """A regime's settings with overrides laid over it, the last one on top.

    >>> resolve_config("la", {"epochs": 3}).lr, resolve_config(None, {"steps": 250}).regime
    (5e-05, 'quick')

    Args:
        regime: one of `TRAIN_PRESETS`; None is `quick` where `steps` is set, and `snnergy` elsewhere.
        overrides: nested settings.

    Raises:
        UsageError: a name is unknown or a value does not fit; the message names the setting.
    """
    laid: dict[str, Any] = {}
    for layer in overrides:
        laid = merge_overrides(laid, layer)
    name = regime or laid.get("regime") or ("quick" if laid.get("steps") else "snnergy")
    if name not in TRAIN_PRESETS:
        msg = f"there is no regime {name!r}"
        raise UsageError(msg, hint=did_you_mean(str(name), list(TRAIN_PRESETS)))
    base = merge_overrides(TrainConfig().model_dump(), TRAIN_PRESETS[name])
    return parse({**merge_overrides(base, laid), "regime": name})


def parse(values: Mapping[str, Any]) -> TrainConfig:
    """Settings of a mapping, such as a run's config.json holds.

    Raises:
        UsageError: a key is unknown or a value does not fit; the message names it.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            msg = f"there is no training setting {where}"
            raise UsageError(msg, hint=did_you_mean(where, _names())) from None
        if where == "augment":
            msg = f"augment is a group of settings, not {first['input']!r}"
            raise UsageError(msg, hint="such as augment.flip=0") from None
        msg = f"training setting {where}={first['input']!r}: {format_validation_error(first)}"
        raise UsageError(msg) from None


def _names() -> list[str]:
    inner = [f"augment.{name}" for name in AugmentConfig.model_fields]
    return [*TrainConfig.model_fields, *inner]
