"""Settings of a network, validated on construction, and the model presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from avdata.errors import UsageError, did_you_mean
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.types import (
    AlphaShape,
    Combine,
    Modality,
    NeuronKind,
    Readout,
    Reset,
    Residual,
    SumNorm,
    Surrogate,
)

BRANCHES = ("s", "t", "st", "o")

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "residual": get_args(Residual),
    "readout": get_args(Readout),
    "sum_norm": get_args(SumNorm),
    "combine": get_args(Combine),
    "query_source": get_args(Modality),
    "alpha_shape": get_args(AlphaShape),
    "neuron": get_args(NeuronKind),
    "surrogate": get_args(Surrogate),
    "reset": get_args(Reset),
    "branches": BRANCHES,
    "fusion_output": ("stream", "spike"),
    "stage3": ("qk", "ssa"),
    "head": ("concat", "sum"),
    "audio_mode": ("repeat", "segment"),
}


def check_choice(value: object, choices: Mapping[str, Any] | tuple[str, ...], what: str) -> None:
    """Raise unless `value` is one of `choices`.

    Raises:
        UsageError: unknown value; the hint names the nearest choice.
    """
    if value not in choices:
        msg = f"Unknown {what} {value!r}."
        raise UsageError(msg, hint=did_you_mean(str(value), list(choices)))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_int_list(value: object) -> bool:
    return isinstance(value, tuple | list) and all(map(_is_int, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_number_of_stages(value: object) -> bool:
    return _is_number(value) or (
        isinstance(value, tuple | list) and len(value) == 3 and all(map(_is_number, value))
    )


_TYPES: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("dims", "heads", "depths", "fusion_stages"), ("a list of integers", _is_int_list)),
    **dict.fromkeys(("ratio", "num_classes", "video_channels", "steps"), ("an integer", _is_int)),
    **dict.fromkeys(
        ("learn_alpha", "tie_directions", "fusion_mlp", "rpe", "aux_heads", "checkpoint"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
    **dict.fromkeys(("tau", "v_threshold", "dropout", "drop_path"), ("a number", _is_number)),
    "alpha_init": ("a number or three numbers", _is_number_of_stages),
    "surrogate_slope": ("a number or null", lambda value: value is None or _is_number(value)),
}


@dataclass(frozen=True)
class ModelConfig:
    """All settings of a network. Invalid combinations raise an error.

    Attributes:
        dims: channels of the three stages; even numbers.
        heads: attention heads of the three stages; each divides its stage's channels.
        depths: blocks per stage.
        ratio: hidden channels of the MLPs in multiples of the stage's channels.
        num_classes: number of classes K.
        video_channels: 3 for RGB, 1 for gray.
        fusion: fusion method, one of `FUSIONS`.
        residual: residual connections: `membrane`, or `sew` as in QKFormer.
        readout: features of the head: mean of the last stream (`membrane`), or of its spikes (`rate`).
        sum_norm: normalization of sums over tokens: `bn`, or `none` as in QKFormer.
        fusion_stages: stages at which the modalities are fused.
        branches: branches of CMQKA: `s` spatial, `t` temporal, `st` both, `o` outer.
        alpha_shape: residual weight α: one number (`scalar`), or one per channel (`channel`).
        alpha_init: initial value of α: one number, or one per stage.
        learn_alpha: whether α is learned.
        combine: combination of CMQKA's branches: `concat`, logical `or`, or `sum`.
        query_source: modality of the Query: the one that is updated (`target`), or the other (`source`).
        tie_directions: whether both directions share their weights.
        fusion_output: `spike` applies a neuron to the fused stream (with `sew`), so that it is binary again.
        fusion_mlp: whether an MLP follows each fusion.
        stage3: attention of the last stage: query-key (`qk`), or spiking self-attention (`ssa`).
        rpe: whether a 3×3 convolution before the first block of each stage encodes token positions.
        head: combination of the modalities' features: `concat`, or `sum` (S-CMRL).
        neuron: `lif`, `if` or `plif`; attention masks always use `lif`, for which the OR is exact.
        surrogate: derivative of the spike: `sigmoid` or `atan`.
        tau: time constant τ of the neurons, in steps; the initial one with `plif`. Attention masks keep 2.
        v_threshold: membrane potential at which a neuron spikes; attention masks keep 0.5.
        reset: membrane after a spike: 0 (`hard`), or reduced by the threshold (`soft`, slower).
        surrogate_slope: slope of the surrogate; null: 4 for `sigmoid`, 2 for `atan`.
        dropout: share of the head's inputs that are dropped in training.
        drop_path: probability of skipping a residual branch of the last block in training; 0 for the first.
        aux_heads: whether each encoder has a linear head of its own, for training.
        audio_mode: conversion of static audio to T steps: `repeat`, or `segment` (cut into T parts).
        steps: number of steps T if both modalities are static.
        checkpoint: whether to recompute activations in the backward pass: less memory, more time.
    """

    dims: tuple[int, int, int]
    heads: tuple[int, int, int]
    depths: tuple[int, int, int]
    ratio: int
    num_classes: int = 6
    video_channels: int = 3
    fusion: str = "cmqka"
    residual: Residual = "membrane"
    readout: Readout = "membrane"
    sum_norm: SumNorm = "bn"
    fusion_stages: tuple[int, ...] = (1, 2, 3)
    branches: str = "st"
    alpha_shape: AlphaShape = "scalar"
    alpha_init: float | tuple[float, float, float] = (0.1, 0.1, 1.0)
    learn_alpha: bool = True
    combine: Combine = "concat"
    query_source: Modality = "target"
    tie_directions: bool = False
    fusion_output: Literal["stream", "spike"] = "stream"
    fusion_mlp: bool = False
    stage3: Literal["qk", "ssa"] = "qk"
    rpe: bool = False
    head: Literal["concat", "sum"] = "concat"
    neuron: NeuronKind = "lif"
    surrogate: Surrogate = "sigmoid"
    tau: float = 2.0
    v_threshold: float = 1.0
    reset: Reset = "hard"
    surrogate_slope: float | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    aux_heads: bool = False
    audio_mode: Literal["repeat", "segment"] = "repeat"
    steps: int = 4
    checkpoint: bool = False

    def __post_init__(self) -> None:
        """Validate all settings.

        Raises:
            UsageError: a value is invalid, or two settings contradict each other.
        """
        self._check_types()
        check_choice(self.fusion, FUSIONS, "fusion")
        for name, choices in _CHOICES.items():
            check_choice(getattr(self, name), choices, name)
        for name in ("dims", "heads", "depths"):
            value = getattr(self, name)
            if len(value) != 3 or not all(isinstance(number, int) and number >= 1 for number in value):
                msg = f"{name} must be three positive integers, one per stage, not {value!r}."
                raise UsageError(msg, hint=f"For example {name}={list(getattr(PRESETS['nano'], name))}")
        for stage, (dim, heads) in enumerate(zip(self.dims, self.heads, strict=True), start=1):
            if dim % heads or dim % 2:
                msg = f"Stage {stage} has {dim} channels and {heads} heads."
                raise UsageError(msg, hint="Dims must be even and multiples of heads")
        for name in ("ratio", "num_classes", "video_channels", "steps"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, not {getattr(self, name)}."
                raise UsageError(msg)
        self._check_ranges()
        stages = self.fusion_stages
        if not set(stages) <= {1, 2, 3} or len(set(stages)) < len(stages):
            msg = f"fusion_stages must be distinct stages from 1, 2 and 3, not {stages!r}."
            raise UsageError(msg, hint="(1, 2, 3) fuses at every stage, (3,) at the last")
        if stages and FUSIONS[self.fusion].stage != "each":
            msg = f"fusion={self.fusion!r} has no fusion stages, requested {stages!r}."
            raise UsageError(msg, hint="Omit fusion_stages, or choose fusion='cmqka'")
        if self.head == "sum" and not stages:
            msg = f"head='sum' needs a fusion with fusion stages; {self.fusion!r} has none."
            raise UsageError(msg, hint="Choose fusion='sum', or omit head")
        if self.fusion_output == "spike" and self.residual == "membrane":
            msg = "fusion_output='spike' contradicts residual='membrane', whose stream is real-valued."
            raise UsageError(msg, hint="Set residual='sew', or omit fusion_output")

    def _check_ranges(self) -> None:
        slope = 1.0 if self.surrogate_slope is None else self.surrogate_slope
        ranges = {
            "tau": ("greater than 1", self.tau > 1),
            "v_threshold": ("greater than 0", self.v_threshold > 0),
            "surrogate_slope": ("greater than 0", slope > 0),
            "dropout": ("at least 0 and less than 1", 0 <= self.dropout < 1),
            "drop_path": ("at least 0 and less than 1", 0 <= self.drop_path < 1),
        }
        for name, (text, is_valid) in ranges.items():
            if not is_valid:
                msg = f"{name} must be {text}, not {getattr(self, name)}."
                raise UsageError(msg)
        if self.drop_path and self.residual == "sew":
            msg = "drop_path contradicts residual='sew', whose branches are spikes and cannot be scaled."
            raise UsageError(msg, hint="Omit drop_path, or set residual='membrane'")

    def _check_types(self) -> None:
        # Values also come from files and the command line.
        for name, (kind, is_valid) in _TYPES.items():
            value = getattr(self, name)
            if not is_valid(value):
                msg = f"{name} must be {kind}, not {value!r}."
                raise UsageError(msg)


PRESETS: Mapping[str, ModelConfig] = {
    # For tests: eight binary channels in the first layer are too few for recordings.
    "nano": ModelConfig((16, 32, 64), (1, 2, 4), (1, 1, 1), 2),
    "tiny": ModelConfig((32, 64, 128), (2, 4, 8), (1, 1, 1), 2),
    "small": ModelConfig((48, 96, 192), (2, 4, 6), (1, 1, 2), 2),
    "base": ModelConfig((64, 128, 256), (2, 4, 8), (1, 2, 2), 4),
    "large": ModelConfig((128, 256, 512), (4, 8, 8), (1, 2, 3), 4),
    # Our reconstruction of the paper's network; the authors published no code of it.
    "paper_like": ModelConfig(
        (128, 256, 512), (8, 8, 8), (1, 2, 3), 4, residual="sew", sum_norm="none", alpha_init=1.0
    ),
}


def configure(preset: str, **options: Any) -> ModelConfig:
    """Return the settings of a model preset with some changed, also those that the fusion changes.

    Args:
        preset: one of `PRESETS`.
        options: fields of `ModelConfig`.

    Raises:
        UsageError: unknown name, or contradicting settings.
    """
    check_choice(preset, PRESETS, "model preset")
    names = tuple(field.name for field in fields(ModelConfig))
    for name in options:
        if name not in names:
            msg = f"Unknown model option {name!r}."
            raise UsageError(msg, hint=did_you_mean(name, list(names)))
    fusion = options.get("fusion", "cmqka")
    check_choice(fusion, FUSIONS, "fusion")
    return replace(PRESETS[preset], **{**FUSIONS[fusion].overrides, **options})
