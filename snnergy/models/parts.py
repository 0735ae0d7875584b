"""Construction of a network's parts from its settings."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

from torch import nn

from snnergy.fusion.block import BidirectionalFusion
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.neurons import NeuronSpec
from snnergy.layers.residual import ResidualInput
from snnergy.layers.types import AttentionKind
from snnergy.models.config import ModelConfig
from snnergy.models.encoder import Stage

AUDIO_KINDS: tuple[AttentionKind, ...] = ("channel", "channel", "token")

VIDEO_KINDS: tuple[AttentionKind, ...] = ("token", "token", "channel")


def make_cell(config: ModelConfig) -> NeuronSpec:
    """Return the kind of neuron of a network."""
    return NeuronSpec(
        config.neuron, config.surrogate, FUSIONS[config.fusion].artificial, config.v_threshold, config.tau,
        config.reset, config.surrogate_slope,
    )  # fmt: skip


def make_encoder(config: ModelConfig, channels: int, kinds: tuple[AttentionKind, ...]) -> nn.ModuleList:
    """Return the three stages of the encoder of a modality with a number of input channels."""
    inputs = (channels, *config.dims[:-1])
    if config.stage3 == "ssa":
        kinds = (*kinds[:2], "ssa")
    total, ends = sum(config.depths), [0, *accumulate(config.depths)]
    # As in Swin Transformers, the probability grows with the depth.
    drop_paths = [config.drop_path * block / max(total - 1, 1) for block in range(total)]
    return nn.ModuleList(
        Stage(
            inputs[stage], config.dims[stage], config.heads[stage], config.depths[stage], kinds[stage],
            config.ratio, config.residual, config.sum_norm, make_cell(config),
            first=stage == 0, rpe=config.rpe, drop_paths=drop_paths[ends[stage] : ends[stage + 1]],
        )
        for stage in range(3)
    )  # fmt: skip


def make_readout(config: ModelConfig, cell: NeuronSpec) -> nn.Module:
    """Return the module between the last stream of an encoder and the head."""
    # The firing rates of the last stage carry too little: on speech, they halve what a network learns.
    return nn.Identity() if config.readout == "membrane" else ResidualInput(config.residual, cell)


def make_fusion(config: ModelConfig, stage: int) -> BidirectionalFusion:
    """Return the fusion after a stage, counted from 0."""
    spec, cell, dim = FUSIONS[config.fusion], make_cell(config), config.dims[stage]
    settings = {name: getattr(config, name) for name in spec.settings}
    alphas = config.alpha_init
    alpha = alphas if isinstance(alphas, int | float) else alphas[stage]
    return BidirectionalFusion(
        partial(spec.build, dim, config.heads[stage], cell=cell, **settings),
        dim, config.residual, cell, alpha_shape=config.alpha_shape, alpha_init=alpha,
        learn_alpha=config.learn_alpha, tie_directions=config.tie_directions,
        spike_output=config.fusion_output == "spike", mlp_ratio=config.ratio if config.fusion_mlp else None,
    )  # fmt: skip
