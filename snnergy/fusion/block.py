"""Bidirectional residual fusion of two modalities at one stage of the encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.residual import ResidualInput, ResidualOutput, SpikingMLP
from snnergy.layers.types import AlphaShape, Residual

ModalityTensors = dict[str, Tensor]


class ResidualFusion(nn.Module):
    """Cross-modal update of one direction and its residual weight α.

    Args:
        message: takes spikes of target and source, returns a current for the target.
        dim: channels C.
        shape: `scalar` or `channel`: α is one number, or one per channel.
        first: initial value of α; its range is not limited.
        learn: α is a parameter; otherwise a buffer.
    """

    alpha: Tensor

    def __init__(
        self,
        message: nn.Module,
        dim: int,
        shape: AlphaShape = "scalar",
        first: float = 0.1,
        *,
        learn: bool = True,
    ) -> None:
        super().__init__()
        self.message = message
        alpha = torch.full(() if shape == "scalar" else (dim, 1, 1), float(first))
        if learn:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Return the update [T, B, C, H, W], not yet weighted by α."""
        return self.message(target, source)


class BidirectionalFusion(nn.Module):
    """Both directions of a fusion at one stage. Each direction reads the streams before the update.

    Args:
        build: makes the cross-modal update of one direction.
        dim: channels C.
        residual: kind of stream.
        cell: kind of neuron.
        alpha_shape: see `ResidualFusion`.
        alpha_init: see `ResidualFusion`.
        learn_alpha: see `ResidualFusion`.
        tie_directions: both directions share their weights.
        spike_output: apply a neuron to the fused stream.
        mlp_ratio: width of an MLP after the fusion, in multiples of C; None adds no MLP.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        dim: int,
        residual: Residual = "membrane",
        cell: NeuronSpec = DEFAULT_NEURON,
        *,
        alpha_shape: AlphaShape = "scalar",
        alpha_init: float = 0.1,
        learn_alpha: bool = True,
        tie_directions: bool = False,
        spike_output: bool = False,
        mlp_ratio: int | None = None,
    ) -> None:
        super().__init__()

        def direction() -> ResidualFusion:
            return ResidualFusion(build(), dim, alpha_shape, alpha_init, learn=learn_alpha)

        self.audio_neuron, self.video_neuron = ResidualInput(residual, cell), ResidualInput(residual, cell)
        self.audio_exit, self.video_exit = ResidualOutput(residual, cell), ResidualOutput(residual, cell)
        self.to_audio = direction()
        self.to_video = self.to_audio if tie_directions else direction()
        names = ("audio", "video")
        self.fire = nn.ModuleDict({name: cell.attention_neuron() for name in names} if spike_output else {})
        self.mlp = nn.ModuleDict(
            {name: SpikingMLP(dim, mlp_ratio, residual, cell) for name in names} if mlp_ratio else {}
        )

    def forward(self, streams: ModalityTensors, present: Mapping[str, Tensor | None]) -> ModalityTensors:
        """Return the updated streams.

        Args:
            streams: `audio` and `video`, float [T, B, C, H, W], on any grids.
            present: by modality, bool [B], or None if all samples have it. An absent modality sends no
                update: the biases of batch norm would turn even silence into one.
        """
        audio, video = self.audio_neuron(streams["audio"]), self.video_neuron(streams["video"])
        for_audio = self.audio_exit(self.to_audio(audio, video))
        for_video = self.video_exit(self.to_video(video, audio))
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
