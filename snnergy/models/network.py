"""SNNergy: two encoders of three stages, fused at every stage, and a linear head on the last streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from avdata.errors import UsageError
from snnergy.fusion.block import BidirectionalFusion, ModalityTensors
from snnergy.fusion.late import LateFusion
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.checkpointing import call, checkpointed
from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import Membranes, NeuronSpec, SpikingNeuron, stateful
from snnergy.layers.residual import ResidualInput
from snnergy.layers.types import AttentionKind
from snnergy.models.config import PRESETS, ModelConfig, configure
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.encoder import Stage

__all__ = ["FUSIONS", "PRESETS", "ModelConfig", "SNNergy", "StreamState", "build", "recalibrate"]

AUDIO_KINDS: tuple[AttentionKind, ...] = ("channel", "channel", "token")

VIDEO_KINDS: tuple[AttentionKind, ...] = ("token", "token", "channel")

Layout = Literal["TBCHW", "BTCHW"]

Present = Mapping[str, Tensor | None]


def build(preset: str = "small", **options: Any) -> SNNergy:
    """Build a network from a model preset.

    >>> sum(weight.numel() for weight in build("nano", num_classes=6, video_channels=1).parameters())
    297784

    Args:
        preset: one of `PRESETS`.
        options: fields of `ModelConfig`, such as `num_classes`, `video_channels` and `fusion`.

    Raises:
        UsageError: unknown name, or contradicting settings.
    """
    return SNNergy(configure(preset, **options))


@dataclass(frozen=True)
class StreamState:
    """State of a stream between two steps: membranes, sum of features, and number of steps."""

    membranes: Membranes = field(default_factory=dict)
    total: Tensor | None = None
    steps: int = 0


class SNNergy(nn.Module, PyTorchModelHubMixin, library_name="avdata", tags=["audio-visual", "snn"]):
    """Spiking audio-visual classifier. It has no state between calls.

    `save_pretrained`, `from_pretrained` and `push_to_hub` write and read `config.json` and
    `model.safetensors`, without pickle.

    Args:
        config: settings; `build` makes them from a model preset.

    Attributes:
        dataset: labels, mel statistics and settings of the training set; None for a network that was not
            trained on a prepared dataset. `save_pretrained` stores them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dataset: DatasetFacts | None = None
        cell = NeuronSpec(config.neuron, config.surrogate)
        spec = FUSIONS[config.fusion]
        used = spec.modalities
        channels = {"audio": 1, "video": config.video_channels}
        kinds = {"audio": AUDIO_KINDS, "video": VIDEO_KINDS}
        self.encoders = nn.ModuleDict({name: _encoder(config, channels[name], kinds[name]) for name in used})
        self.fusions = nn.ModuleDict(
            {str(stage): _fusion(config, stage - 1) for stage in config.fusion_stages}
        )
        self.readouts = nn.ModuleDict({name: _readout(config, cell) for name in used})
        late = FUSIONS[config.head] if spec.stage == "each" else spec
        self.join: LateFusion = late.build(used, config.dims[-1], cell)
        self.head = nn.Linear(self.join.width, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        audio: Tensor,
        video: Tensor,
        mask_a: Tensor | None = None,
        mask_v: Tensor | None = None,
        *,
        layout: Layout = "TBCHW",
        return_aux: bool = False,
    ) -> Any:
        """Return logits [B, K]; with `return_aux`, also a dict of intermediate results.

        Args:
            audio: float [T, B, 1, F, L], or static [B, 1, F, L], converted to T steps as `audio_mode` says.
            video: float [T, B, C, H, W], or static [B, C, H, W], repeated at every step.
            mask_a: bool [B], which samples have audio; None: all.
            mask_v: bool [B], which samples have video; None: all.
            layout: `BTCHW` for inputs [B, T, ...], as loaders return them.
            return_aux: also return `stages` (streams of each modality after each stage), `masks` (attention
                masks, bool) and `rates` (mean firing rates) by name of the neuron, `features` [B, W] of the
                head, and `step_logits` [T, B, K].

        Raises:
            ValueError: the shapes do not match each other or the settings.
        """
        audio, video, steps = _arrange(audio, video, self.config, layout)
        present = {"audio": mask_a, "video": mask_v}
        if not return_aux:
            return self._classify(self._features(audio, video, present, steps).mean(0))
        aux: dict[str, Any] = {"stages": [], "masks": {}, "rates": {}}

        def record(name: str, neuron: SpikingNeuron, spikes: Tensor) -> None:
            aux["rates"][name] = spikes.float().mean()
            if neuron.mask:
                aux["masks"][name] = spikes.bool()

        with record_spikes(self, record):
            features = self._features(audio, video, present, steps, aux["stages"])
        logits, aux["features"] = self._classify(features.mean(0)), self.join.combine(features.mean(0))
        aux["step_logits"] = torch.stack([self._classify(step) for step in features])
        return logits, aux

    def init_state(self) -> StreamState:
        """Return the state before the first step of a stream."""
        return StreamState()

    @torch.no_grad()
    def step(
        self,
        audio: Tensor,
        video: Tensor,
        state: StreamState,
        mask_a: Tensor | None = None,
        mask_v: Tensor | None = None,
    ) -> tuple[Tensor, StreamState]:
        """Process one time step of a stream; return logits [B, K] of all steps so far and the next state.

        After T steps the logits equal those of `forward` on the T steps. `state` is not modified.

        Args:
            audio: float [B, 1, F, L] of this step.
            video: float [B, C, H, W] of this step.
            state: result of `init_state`, or of the previous step.
            mask_a: bool [B], which samples have audio; None: all.
            mask_v: bool [B], which samples have video; None: all.

        Raises:
            UsageError: the network is in training mode, or its fusion is not causal.
            ValueError: the shapes do not match each other or the settings.
        """
        if self.training:
            msg = "Cannot run a network in training mode step by step."
            raise UsageError(msg, hint="call model.eval() first")
        if not FUSIONS[self.config.fusion].causal:
            msg = f"fusion={self.config.fusion!r} reads all time steps at once and cannot run step by step."
            raise UsageError(msg, hint="call the model on all steps, or choose fusion='cmqka'")
        audio, video, _ = _arrange(audio[None], video[None], self.config, "TBCHW")
        with stateful(state.membranes) as membranes:
            features = self._features(audio, video, {"audio": mask_a, "video": mask_v}, 1)[0]
        total, steps = features if state.total is None else state.total + features, state.steps + 1
        return self._classify(total / steps), StreamState(membranes, total, steps)

    def _features(
        self,
        audio: Tensor,
        video: Tensor,
        present: Present,
        steps: int,
        stages: list[ModalityTensors] | None = None,
    ) -> Tensor:
        """Return the features of each step, [T, B, W]."""
        inputs = {"audio": audio, "video": video}
        streams = {name: inputs[name] for name in self.encoders}
        for stage in range(3):
            streams = self._stage(stage, streams, present, steps)
            if stages is not None:
                stages.append(streams)
        features = {}
        for name, stream in streams.items():
            feature, mask = self.readouts[name](stream).mean((3, 4)), present[name]
            features[name] = feature if mask is None else feature * mask[None, :, None]
        return self.join.collect(features)

    def _stage(self, stage: int, streams: ModalityTensors, present: Present, steps: int) -> ModalityTensors:
        run = checkpointed if self.config.checkpoint and torch.is_grad_enabled() else call
        streams = {name: self.encoders[name][stage](x, steps, run) for name, x in streams.items()}  # type: ignore[index]
        if str(stage + 1) in self.fusions:
            streams = run(self.fusions[str(stage + 1)], streams, present)
        return streams

    def _classify(self, features: Tensor) -> Tensor:
        """Return logits [B, K] of features [B, W]."""
        return self.head(self.join.combine(features))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer; norms, biases, leaks and α get no weight decay."""
        no_decay = {id(weight) for name, weight in self.named_parameters() if name.endswith("alpha")}
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
        for weight in self.parameters():
            groups[weight.ndim < 2 or id(weight) in no_decay].append(weight)
        decayed, plain = groups
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        facts = {} if self.dataset is None else {"dataset": self.dataset.dump()}
        text = json.dumps({**asdict(self.config), **facts}, sort_keys=True, indent=2)
        (save_directory / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def _from_pretrained(cls, *, config: Mapping[str, Any], **options: Any) -> SNNergy:  # type: ignore[override]
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
        }
        facts = settings.pop("dataset", None)
        network: SNNergy = super()._from_pretrained(config=ModelConfig(**settings), **options)
        network.dataset = None if facts is None else DatasetFacts.parse(facts)
        return network


def _encoder(config: ModelConfig, channels: int, kinds: tuple[AttentionKind, ...]) -> nn.ModuleList:
    inputs = (channels, *config.dims[:-1])
    if config.stage3 == "ssa":
        kinds = (*kinds[:2], "ssa")
    return nn.ModuleList(
        Stage(
            inputs[stage], config.dims[stage], config.heads[stage], config.depths[stage], kinds[stage],
            config.ratio, config.residual, config.sum_norm, NeuronSpec(config.neuron, config.surrogate),
            first=stage == 0, rpe=config.rpe,
        )
        for stage in range(3)
    )  # fmt: skip


def _readout(config: ModelConfig, cell: NeuronSpec) -> nn.Module:
    # The firing rates of the last stage carry too little: on speech, they halve what a network learns.
    return nn.Identity() if config.readout == "membrane" else ResidualInput(config.residual, cell)


def _fusion(config: ModelConfig, stage: int) -> BidirectionalFusion:
    spec, cell, dim = FUSIONS[config.fusion], NeuronSpec(config.neuron, config.surrogate), config.dims[stage]
    settings = {name: getattr(config, name) for name in spec.settings}
    return BidirectionalFusion(
        partial(spec.build, dim, config.heads[stage], cell=cell, **settings),
        dim, config.residual, cell, alpha_shape=config.alpha_shape, alpha_init=config.alpha_init,
        learn_alpha=config.learn_alpha, tie_directions=config.tie_directions,
        spike_output=config.fusion_output == "spike", mlp_ratio=config.ratio if config.fusion_mlp else None,
    )  # fmt: skip


def _arrange(audio: Tensor, video: Tensor, config: ModelConfig, layout: Layout) -> tuple[Tensor, Tensor, int]:
    """Return both inputs as [T, B, C, H, W], static ones with T = 1, and T."""
    shapes = f"audio {list(audio.shape)} and video {list(video.shape)}"
    inputs = [
        part.transpose(0, 1) if part.ndim == 5 and layout == "BTCHW" else part for part in (audio, video)
    ]
    steps = {len(part) for part in inputs if part.ndim == 5} or {config.steps}
    if not {part.ndim for part in inputs} <= {4, 5} or len(steps) > 1:
        msg = f"{shapes} must be [T, B, C, H, W] with the same T, or static [B, C, H, W]."
        raise ValueError(msg)
    (count,) = steps
    if inputs[0].ndim == 4:
        segmented = config.audio_mode == "segment"
        inputs[0] = _segments(inputs[0], count) if segmented else inputs[0][None]
    if inputs[1].ndim == 4:
        inputs[1] = inputs[1][None]
    audio, video = inputs
    if audio.shape[1] != video.shape[1]:
        msg = f"{shapes} have batches of {audio.shape[1]} and {video.shape[1]} samples."
        raise ValueError(msg)
    if audio.shape[2] != 1 or video.shape[2] != config.video_channels:
        msg = f"{shapes} must have 1 and {config.video_channels} channels."
        raise ValueError(msg)
    if min(*audio.shape[3:], *video.shape[3:]) < 16:
        msg = f"{shapes} must have at least 16 rows and columns."
        raise ValueError(msg)
    return audio, video, count


def _segments(audio: Tensor, steps: int) -> Tensor:
    """Return static audio [B, 1, F, L] cut into T equal segments, each stretched to L columns."""
    parts = [
        functional.interpolate(part, size=audio.shape[-2:], mode="bilinear", align_corners=False)
        for part in audio.tensor_split(steps, dim=3)
    ]
    return torch.stack(parts)


def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the statistics of all batch norms to their mean over training batches.

    Spikes are sparse, so that after a short training the moving averages are far from the layers' inputs
    and a network evaluated with them is almost silent. Call this before every evaluation and before saving.

    Args:
        model: module with batch norms.
        batches: (audio [T, B, 1, F, L], video [T, B, C, H, W]); 10 to 32 batches are enough.

    Raises:
        UsageError: `batches` is empty.
    """
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        msg = "No batches to recalibrate on."
        raise UsageError(msg, hint="use batches of the train split")
    # `update_bn` calls a model with the first element of a batch as its only argument.
    unpack = model.register_forward_pre_hook(lambda _, inputs: inputs[0], prepend=True)
    try:
        update_bn(((pair,) for pair in chain([first], remaining)), model)
    finally:
        unpack.remove()
