"""Fusion at a stage: both modalities send one another a message, added to their streams with a weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snnergy.fusion.cmqka import CrossModalAttention
from snnergy.fusion.cross_attention import CCSSA, SpikingCrossAttention
from snnergy.layers.neurons import NeuronSpec
from snnergy.layers.residual import ResidualInput, ResidualOutput, SpikingMLP
from snnergy.layers.types import AlphaShape
from snnergy.models.config import ModelConfig

ModalityTensors = dict[str, Tensor]


class ResidualFusion(nn.Module):
    """A fusion of one direction as a residual: a message, weighted by α, which may be learned.

    Args:
        message: takes spikes of target and source and makes a current for the target.
        dim: channels C.
        shape: α is one number, or one a channel.
        first: its first value; it is not limited to any range.
        learn: it is learned.
    """

    alpha: Tensor

    def __init__(
        self,
        message: nn.Module,
        dim: int,
        shape: AlphaShape = "scalar",
        first: float = 1.0,
        *,
        learn: bool = True,
    ) -> None:
        super().__init__()
        self.message = message
        alpha = torch.full(() if shape == "scalar" else (dim, 1, 1), first)
        if learn:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """The message, not yet weighted."""
        return self.message(target, source)


class BidirectionalFusion(nn.Module):
    """Both directions of a fusion at one stage; each reads the streams as they were before.

    Args:
        config: the network's settings.
        stage: 0, 1 or 2.
    """

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        cell, dim = NeuronSpec(config.neuron, config.surrogate), config.dims[stage]
        self.audio_neuron, self.video_neuron = (
            ResidualInput(config.residual, cell),
            ResidualInput(config.residual, cell),
        )
        self.audio_exit, self.video_exit = (
            ResidualOutput(config.residual, cell),
            ResidualOutput(config.residual, cell),
        )
        self.to_audio = _residual_fusion(config, stage, cell)
        self.to_video = self.to_audio if config.tie_directions else _residual_fusion(config, stage, cell)
        spikes = config.fusion_output == "spike"
        self.fire = nn.ModuleDict(
            {name: cell.attention_neuron() for name in ("audio", "video")} if spikes else {}
        )
        self.mlp = nn.ModuleDict(
            {name: SpikingMLP(dim, config.ratio, config.residual, cell) for name in ("audio", "video")}
            if config.fusion_mlp
            else {}
        )

    def forward(self, streams: ModalityTensors, present: Mapping[str, Tensor | None]) -> ModalityTensors:
        """The streams with the messages; of a sample's modality that is absent there is none."""
        audio, video = self.audio_neuron(streams["audio"]), self.video_neuron(streams["video"])
        for_audio = self.audio_exit(self.to_audio(audio, video))
        for_video = self.video_exit(self.to_video(video, audio))
        # Batch norm's bias makes a message even of silence: what is absent must say nothing.
        if present["video"] is not None:
            for_audio = for_audio * present["video"][None, :, None, None, None]
        if present["audio"] is not None:
            for_video = for_video * present["audio"][None, :, None, None, None]
        fused = {
            "audio": streams["audio"] + self.to_audio.alpha * for_audio,
            "video": streams["video"] + self.to_video.alpha * for_video,
        }
        for parts in (self.fire, self.mlp):
            fused = {name: parts[name](stream) if name in parts else stream for name, stream in fused.items()}
        return fused


def _residual_fusion(config: ModelConfig, stage: int, cell: NeuronSpec) -> ResidualFusion:
    dim, heads = config.dims[stage], config.heads[stage]
    message: nn.Module
    if config.fusion == "ccssa":
        message = CCSSA(dim, heads, cell)
    elif config.fusion == "sca":
        message = SpikingCrossAttention(dim, heads, cell)
    else:
        message = CrossModalAttention(
            dim, heads, config.branches, config.sum_norm,
            combine=config.combine, query_source=config.query_source, cell=cell,
        )  # fmt: skip
    return ResidualFusion(message, dim, config.alpha_shape, config.alpha_init, learn=config.learn_alpha)
