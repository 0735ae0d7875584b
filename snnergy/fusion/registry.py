"""Table of the fusion methods. It imports no torch, so that the command line can list the names.

To add a fusion, write a module with its class and add a row to `FUSIONS`:

- `stage="each"`: built as `build(dim, heads, cell=..., **settings)` once per direction and fusion stage. It
  takes spikes of target and source and returns currents for the target, all [T, B, C, H, W].
- `stage="head"` or `"one"`: built as `build(modalities, dim, cell)`; see `snnergy.fusion.late.LateFusion`.
- `stage="input"`: built as `build(modalities, video_channels)`; see `snnergy.fusion.probe.PooledInputs`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BOTH = ("audio", "video")


@dataclass(frozen=True)
class FusionSpec:
    """One fusion method.

    Attributes:
        stage: where modalities meet: at `each` fusion stage of the encoders, only at the `head`, nowhere
            (`one` modality), or in a head on the `input`, without encoders.
        reference: `module:class` of the implementation, imported when a network is built.
        options: fields of `ModelConfig` that the name implies, such as `branches`.
        settings: names of the fields of `ModelConfig` that the class takes.
        causal: step t depends on steps up to t only, so that a stream can be evaluated step by step.
        modalities: those that the network reads, each by an encoder.
        artificial: ReLU takes the place of spiking neurons, and a sigmoid that of attention masks.
    """

    stage: Literal["each", "head", "one", "input"]
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    causal: bool = True
    modalities: tuple[str, ...] = BOTH
    artificial: bool = False

    @property
    def build(self) -> Callable[..., Any]:
        """Class that implements the fusion; importing it imports torch."""
        module, name = self.reference.split(":")
        built: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return built

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of `ModelConfig` that this fusion changes in a model preset."""
        return {**self.options, **({} if self.stage == "each" else {"fusion_stages": ()})}


def _late(name: str, modalities: tuple[str, ...] = BOTH, *, artificial: bool = False) -> FusionSpec:
    stage: Literal["head", "one"] = "head" if modalities == BOTH else "one"
    return FusionSpec(stage, f"snnergy.fusion.late:{name}", modalities=modalities, artificial=artificial)


def _probe(*modalities: str) -> FusionSpec:
    return FusionSpec("input", "snnergy.fusion.probe:PooledInputs", causal=False, modalities=modalities)


def _cmqka(**options: Any) -> FusionSpec:
    settings = ("branches", "sum_norm", "combine", "query_source")
    return FusionSpec("each", "snnergy.fusion.cmqka:CrossModalAttention", options, settings)


FUSIONS: Mapping[str, FusionSpec] = {
    "cmqka": _cmqka(),
    "cmqka_s": _cmqka(branches="s"),
    "cmqka_t": _cmqka(branches="t"),
    "cmqka_o": _cmqka(branches="o"),
    "cmqka_last": _cmqka(fusion_stages=(3,)),
    "cmqka_fixed0": _cmqka(alpha_init=0.0, learn_alpha=False),
    "cmqka_fixed1": _cmqka(alpha_init=1.0, learn_alpha=False),
    "ccssa": FusionSpec("each", "snnergy.fusion.cross_attention:CCSSA", causal=False),
    "sca": FusionSpec("each", "snnergy.fusion.cross_attention:SpikingCrossAttention"),
    "concat": _late("LateFusion"),
    "sum": _late("Sum"),
    "film": _late("FiLM"),
    "gated": _late("Gated"),
    "weight_attention": _late("WeightAttention"),
    "cmci": _late("CMCI"),
    "audio": _late("LateFusion", ("audio",)),
    "video": _late("LateFusion", ("video",)),
    # References that tell hard data from a network that does not learn.
    "cnn_concat": _late("LateFusion", artificial=True),
    "cnn_audio": _late("LateFusion", ("audio",), artificial=True),
    "cnn_video": _late("LateFusion", ("video",), artificial=True),
    "probe": _probe(*BOTH),
    "probe_audio": _probe("audio"),
    "probe_video": _probe("video"),
}
"""Fusion methods by name."""
