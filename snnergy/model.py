"""SNNergy: two encoders of three stages, fused at every stage by CMQKA, and a linear head on firing rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avdata.config import nearest
from avdata.errors import UsageError
from snnergy.attention import CrossModalAttention, Kind, SumNorm
from snnergy.encoder import Residual, Stage
from snnergy.neuron import Neuron

AUDIO_KINDS: tuple[Kind, ...] = ("channel", "channel", "token")
VIDEO_KINDS: tuple[Kind, ...] = ("token", "token", "channel")


@dataclass(frozen=True)
class ModelConfig:
    """Everything a model is built from.

    Attributes:
        dims: channels of the three stages.
        heads: of the three stages.
        depths: blocks of the three stages.
        ratio: of the MLPs' width to the channels.
        num_classes: K.
        video_channels: 3 for RGB, 1 for grey.
        fusion: one of `FUSIONS`.
        residual: `membrane`, or `sew` as in QKFormer.
        sum_norm: `bn`, or `none` as in QKFormer.
        fusion_stages: stages at which CMQKA fuses.
        branches: of CMQKA: spatial, temporal, outer.
        alpha_shape: of CMQKA's residual weight.
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
    alpha_shape: Literal["scalar", "channel"] = "scalar"


PRESETS: Mapping[str, ModelConfig] = {
    "nano": ModelConfig((16, 32, 64), (1, 2, 4), (1, 1, 1), 2),
    "tiny": ModelConfig((32, 64, 128), (2, 4, 8), (1, 1, 1), 2),
    "small": ModelConfig((48, 96, 192), (2, 4, 6), (1, 1, 2), 2),
    "base": ModelConfig((64, 128, 256), (2, 4, 8), (1, 2, 2), 4),
    "large": ModelConfig((128, 256, 512), (4, 8, 8), (1, 2, 3), 4),
    # Our reconstruction of the paper's network, of which no code is public.
    "paper_like": ModelConfig((128, 256, 512), (8, 8, 8), (1, 2, 3), 4, residual="sew", sum_norm="none"),
}

FUSIONS: Mapping[str, Mapping[str, Any]] = {
    "cmqka": {},
    "cmqka_s": {"branches": "s"},
    "cmqka_t": {"branches": "t"},
    "cmqka_o": {"branches": "o"},
    "cmqka_last": {"fusion_stages": (3,)},
    "concat": {"fusion_stages": ()},
    "audio": {"fusion_stages": ()},
    "video": {"fusion_stages": ()},
}
"""Ways of fusing by name, and what each fixes; `concat` joins at the head, `audio`, `video` use one."""


def build(preset: str = "nano", **options: Any) -> SNNergy:
    """A model of a preset's size.

    >>> sum(weight.numel() for weight in build("nano", num_classes=6, video_channels=1).parameters())
    297784

    Args:
        preset: one of `PRESETS`.
        options: fields of `ModelConfig` to change, `num_classes`, `video_channels` and `fusion` among them.

    Raises:
        UsageError: a name is unknown.
    """
    if preset not in PRESETS:
        msg = f"there is no model preset {preset!r}"
        raise UsageError(msg, hint=nearest(preset, list(PRESETS)))
    known = [field.name for field in fields(ModelConfig)]
    for name in options:
        if name not in known:
            msg = f"a model has no option {name!r}"
            raise UsageError(msg, hint=nearest(name, known))
    fusion = options.get("fusion", "cmqka")
    if fusion not in FUSIONS:
        msg = f"there is no fusion {fusion!r}"
        raise UsageError(msg, hint=nearest(str(fusion), list(FUSIONS)))
    return SNNergy(replace(PRESETS[preset], **{**FUSIONS[fusion], **options}))


class SNNergy(nn.Module):
    """The network. It keeps nothing from one call to the next."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        used = {"audio": ("audio",), "video": ("video",)}.get(config.fusion, ("audio", "video"))
        channels = {"audio": 1, "video": config.video_channels}
        kinds = {"audio": AUDIO_KINDS, "video": VIDEO_KINDS}
        self.encoders = nn.ModuleDict({name: _encoder(config, channels[name], kinds[name]) for name in used})
        self.fusions = nn.ModuleDict(
            {str(stage): _Exchange(config, stage - 1) for stage in config.fusion_stages}
        )
        self.rates = nn.ModuleDict(
            {name: Neuron() if config.residual == "membrane" else nn.Identity() for name in used}
        )
        self.head = nn.Linear(len(used) * config.dims[-1], config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, audio: Tensor, video: Tensor, mask_a: Tensor | None = None, mask_v: Tensor | None = None
    ) -> Tensor:
        """Logits [B, K].

        Args:
            audio: [T, B, 1, F, L].
            video: [T, B, C, H, W].
            mask_a: bool [B], the samples that have sound; None: all.
            mask_v: bool [B], the samples that have pictures; None: all.

        Raises:
            ValueError: the shapes do not fit together.
        """
        _check(audio, video, self.config)
        given = {"audio": audio, "video": video}
        present = {"audio": mask_a, "video": mask_v}
        streams = {name: given[name] for name in self.encoders}
        for stage in range(3):
            streams = {name: self._stage(name, stage)(x) for name, x in streams.items()}
            if str(stage + 1) in self.fusions:
                streams = self.fusions[str(stage + 1)](streams, present)
        pooled = []
        for name, stream in streams.items():
            rate = self.rates[name](stream).mean((0, 3, 4))
            mask = present[name]
            pooled.append(rate if mask is None else rate * mask[:, None])
        logits: Tensor = self.head(torch.cat(pooled, dim=1))
        return logits

    def _stage(self, name: str, stage: int) -> nn.Module:
        stages = self.encoders[name]
        assert isinstance(stages, nn.ModuleList)
        return stages[stage]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: no decay on norms, biases and residual weights, which it would shrink."""
        decayed = [weight for weight in self.parameters() if weight.ndim > 1 and weight.shape[1:] != (1, 1)]
        plain = [
            weight for weight in self.parameters() if not (weight.ndim > 1 and weight.shape[1:] != (1, 1))
        ]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _encoder(config: ModelConfig, channels: int, kinds: tuple[Kind, ...]) -> nn.ModuleList:
    inputs = (channels, *config.dims[:-1])
    return nn.ModuleList(
        Stage(
            inputs[stage], config.dims[stage], config.heads[stage], config.depths[stage], kinds[stage],
            config.ratio, config.residual, config.sum_norm, first=stage == 0,
        )
        for stage in range(3)
    )  # fmt: skip


class _Exchange(nn.Module):
    """Both directions of CMQKA at one stage; each reads the streams as they were before."""

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        membrane = config.residual == "membrane"
        self.audio_neuron, self.video_neuron = (Neuron() if membrane else nn.Identity() for _ in range(2))
        self.out_neuron = nn.Identity() if membrane else Neuron()
        options = (
            config.dims[stage],
            config.heads[stage],
            config.branches,
            config.sum_norm,
            config.alpha_shape,
        )
        self.to_audio, self.to_video = CrossModalAttention(*options), CrossModalAttention(*options)

    def forward(self, streams: dict[str, Tensor], present: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        audio, video = self.audio_neuron(streams["audio"]), self.video_neuron(streams["video"])
        for_audio = self.out_neuron(self.to_audio(audio, video))
        for_video = self.out_neuron(self.to_video(video, audio))
        # Batch norm's bias makes a message even of silence: what is absent must say nothing.
        if present["video"] is not None:
            for_audio = for_audio * present["video"][None, :, None, None, None]
        if present["audio"] is not None:
            for_video = for_video * present["audio"][None, :, None, None, None]
        return {
            "audio": streams["audio"] + self.to_audio.alpha * for_audio,
            "video": streams["video"] + self.to_video.alpha * for_video,
        }


def _check(audio: Tensor, video: Tensor, config: ModelConfig) -> None:
    if audio.ndim != 5 or video.ndim != 5 or audio.shape[:2] != video.shape[:2]:
        msg = (
            f"audio {list(audio.shape)} and video {list(video.shape)} must be [T, B, C, H, W] of one T and B"
        )
        raise ValueError(msg)
    if audio.shape[2] != 1 or video.shape[2] != config.video_channels:
        msg = f"{audio.shape[2]} and {video.shape[2]} channels were given, not 1 and {config.video_channels}"
        raise ValueError(msg)
    if min(*audio.shape[3:], *video.shape[3:]) < 16:
        msg = f"audio {list(audio.shape)} and video {list(video.shape)} need at least 16 rows and columns"
        raise ValueError(msg)


@contextmanager
def _cumulative(model: nn.Module) -> Iterator[None]:
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before, training = [norm.momentum for norm in norms], model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        model.train(training)


def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the batch norms' statistics to the mean over some training batches.

    Spikes are sparse, so the moving averages of a short training are far from what the layers see, and a
    network evaluated with them is nearly silent. Do this before every evaluation and before saving.

    Args:
        model: any module with batch norms.
        batches: (audio [T, B, 1, F, L], video [T, B, C, H, W]); 10 to 32 of them are enough.
    """
    with torch.no_grad(), _cumulative(model):
        for audio, video in batches:
            model(audio, video)
