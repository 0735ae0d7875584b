"""What a network is built from: its settings, checked when they are made, its sizes and ways of fusing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from avdata.errors import UsageError, did_you_mean
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.types import AlphaShape, Combine, Modality, NeuronKind, Residual, SumNorm, Surrogate

BRANCHES = ("s", "t", "st", "o")

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "residual": get_args(Residual),
    "sum_norm": get_args(SumNorm),
    "combine": get_args(Combine),
    "query_source": get_args(Modality),
    "alpha_shape": get_args(AlphaShape),
    "neuron": get_args(NeuronKind),
    "surrogate": get_args(Surrogate),
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


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wholes(value: object) -> bool:
    return isinstance(value, tuple | list) and all(map(_whole, value))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TYPES: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("dims", "heads", "depths", "fusion_stages"), ("whole numbers in a list", _wholes)),
    **dict.fromkeys(("ratio", "num_classes", "video_channels", "steps"), ("a whole number", _whole)),
    **dict.fromkeys(
        ("learn_alpha", "tie_directions", "fusion_mlp", "rpe", "checkpoint"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
    "alpha_init": ("a number", _number),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything a model is built from; settings that do not go together are refused.

    Attributes:
        dims: channels of the three stages, even numbers.
        heads: of the three stages; each divides its stage's channels.
        depths: blocks of the three stages.
        ratio: of the MLPs' width to the channels.
        num_classes: K.
        video_channels: 3 for RGB, 1 for gray.
        fusion: one of `FUSIONS`.
        residual: `membrane`, or `sew` as in QKFormer.
        sum_norm: of sums over tokens: `bn`, or `none` as in QKFormer.
        fusion_stages: stages at which modalities are fused.
        branches: of CMQKA: `s` spatial, `t` temporal, `st` both, `o` outer.
        alpha_shape: the residual weight is one number, or one a channel.
        alpha_init: its first value.
        learn_alpha: it is learned.
        combine: how branches meet: beside one another, as logical OR, or added.
        query_source: whose Query asks: the modality that receives (`target`), or the other.
        tie_directions: both directions use the same weights.
        fusion_output: `spike` fires on the fused stream (with `sew`), so that it is binary again.
        fusion_mlp: an MLP follows each fusion.
        stage3: attention of the last stage: query-key, or spiking self-attention.
        rpe: a 3×3 convolution before the first block of each stage tells where a token stands.
        head: modalities' features stand beside one another, or are added (S-CMRL).
        neuron: `lif`, `if` or `plif`; attention masks are always fired by `lif`, whose OR is exact.
        surrogate: derivative of the spike: `sigmoid` or `atan`.
        audio_mode: how static sound becomes T steps: repeated, or cut into T segments.
        steps: T, where both modalities are static.
        checkpoint: parts are computed again in the backward, which trades time for memory.
    """

    dims: tuple[int, int, int]
    heads: tuple[int, int, int]
    depths: tuple[int, int, int]
    ratio: int
    num_classes: int = 6
    video_channels: int = 3
    fusion: str = "cmqka"
    residual: Residual = "membrane"
    sum_norm: SumNorm = "bn"
    fusion_stages: tuple[int, ...] = (1, 2, 3)
    branches: str = "st"
    alpha_shape: AlphaShape = "scalar"
    alpha_init: float = 1.0
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
    audio_mode: Literal["repeat", "segment"] = "repeat"
    steps: int = 4
    checkpoint: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UsageError: a value is unknown, or settings do not go together.
        """
        self._check_types()
        check_choice(self.fusion, FUSIONS, "fusion")
        for name, choices in _CHOICES.items():
            check_choice(getattr(self, name), choices, name)
        for name in ("dims", "heads", "depths"):
            value = getattr(self, name)
            if len(value) != 3 or not all(isinstance(one, int) and one >= 1 for one in value):
                msg = f"{name} must be three positive numbers, one a stage, not {value!r}"
                raise UsageError(msg, hint=f"for example {list(getattr(PRESETS['nano'], name))}")
        for stage, (dim, heads) in enumerate(zip(self.dims, self.heads, strict=True), start=1):
            if dim % heads or dim % 2:
                msg = f"stage {stage} has {dim} channels and {heads} heads"
                raise UsageError(msg, hint="channels must be even and a multiple of the heads")
        for name in ("ratio", "num_classes", "video_channels", "steps"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, not {getattr(self, name)}"
                raise UsageError(msg)
        stages = self.fusion_stages
        if not set(stages) <= {1, 2, 3} or len(set(stages)) < len(stages):
            msg = f"fusion_stages must be stages of 1, 2 and 3, each at most once, not {stages!r}"
            raise UsageError(msg, hint="(1, 2, 3) fuses at every stage, (3,) at the last")
        if stages and FUSIONS[self.fusion].stage != "each":
            msg = f"fusion {self.fusion!r} joins at the head and has no fusion stages, not {stages!r}"
            raise UsageError(msg, hint="leave out fusion_stages, or choose fusion='cmqka'")
        if self.head == "sum" and not stages:
            msg = f"head='sum' is for networks that fuse at stages, and {self.fusion!r} does not"
            raise UsageError(msg, hint="choose fusion='sum', or leave out head")
        if self.fusion_output == "spike" and self.residual == "membrane":
            msg = "fusion_output='spike' makes a stream of spikes, and residual='membrane' has none"
            raise UsageError(msg, hint="give residual='sew', or leave out fusion_output")

    def _check_types(self) -> None:
        """A network is also built from files and command lines, where a value may be anything."""
        for name, (kind, fits) in _TYPES.items():
            value = getattr(self, name)
            if not fits(value):
                msg = f"{name} must be {kind}, not {value!r}"
                raise UsageError(msg)


PRESETS: Mapping[str, ModelConfig] = {
    "nano": ModelConfig((16, 32, 64), (1, 2, 4), (1, 1, 1), 2),
    "tiny": ModelConfig((32, 64, 128), (2, 4, 8), (1, 1, 1), 2),
    "small": ModelConfig((48, 96, 192), (2, 4, 6), (1, 1, 2), 2),
    "base": ModelConfig((64, 128, 256), (2, 4, 8), (1, 2, 2), 4),
    "large": ModelConfig((128, 256, 512), (4, 8, 8), (1, 2, 3), 4),
    # Our reconstruction of the paper's network, of which no code is public.
    "paper_like": ModelConfig((128, 256, 512), (8, 8, 8), (1, 2, 3), 4, residual="sew", sum_norm="none"),
}


def configure(preset: str, **options: Any) -> ModelConfig:
    """A preset's settings with some changed; a fusion brings those that it fixes.

    Raises:
        UsageError: a name is unknown, or settings do not go together.
    """
    check_choice(preset, PRESETS, "model preset")
    names = tuple(field.name for field in fields(ModelConfig))
    for name in options:
        if name not in names:
            msg = f"a model has no option {name!r}"
            raise UsageError(msg, hint=did_you_mean(name, list(names)))
    fusion = options.get("fusion", "cmqka")
    check_choice(fusion, FUSIONS, "fusion")
    return replace(PRESETS[preset], **{**FUSIONS[fusion].overrides, **options})
