"""SNNergy: two encoders of three stages, fused at every stage, and a linear head on the last streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from avdata.errors import UsageError
from avdata.streaming.batch import AVBatch
from snnergy.fusion.block import ModalityTensors
from snnergy.fusion.late import LateFusion
from snnergy.fusion.probe import PooledInputs
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.checkpointing import call, checkpointed
from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import Membranes, SpikingNeuron, stateful
from snnergy.models.config import PRESETS, ModelConfig, configure
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.inputs import (
    SMALLEST,
    InputBatch,
    Layout,
    arrange_inputs,
    check_finite,
    check_masks,
    normalize_frames,
    presence_masks,
)
from snnergy.models.parts import AUDIO_KINDS, VIDEO_KINDS, make_cell, make_encoder, make_fusion, make_readout
from snnergy.models.stored import check_shapes, parse_settings, pretrained_shapes, stored_network_errors

__all__ = ["FUSIONS", "PRESETS", "ModelConfig", "SNNergy", "StreamState", "build", "recalibrate"]

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
        cell = make_cell(config)
        spec = FUSIONS[config.fusion]
        used = spec.modalities
        channels = {"audio": 1, "video": config.video_channels}
        kinds = {"audio": AUDIO_KINDS, "video": VIDEO_KINDS}
        encoded = () if spec.stage == "input" else used
        self.encoders = nn.ModuleDict(
            {name: make_encoder(config, channels[name], kinds[name]) for name in encoded}
        )
        self.fusions = nn.ModuleDict(
            {str(stage): make_fusion(config, stage - 1) for stage in config.fusion_stages}
        )
        self.readouts = nn.ModuleDict({name: make_readout(config, cell) for name in encoded})
        late = FUSIONS[config.head] if spec.stage == "each" else spec
        self.join: LateFusion | PooledInputs = (
            late.build(used, config.video_channels)
            if spec.stage == "input"
            else late.build(used, config.dims[-1], cell)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.join.width, config.num_classes)
        names = encoded if config.aux_heads else ()
        self.aux_heads = nn.ModuleDict(
            {name: nn.Linear(config.dims[-1], config.num_classes) for name in names}
        )
        for weight in (self.head.weight, *(part.weight for part in self.aux_heads.values())):
            nn.init.trunc_normal_(cast("Tensor", weight), std=0.02)
        for bias in (self.head.bias, *(part.bias for part in self.aux_heads.values())):
            nn.init.zeros_(cast("Tensor", bias))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that the network reads."""
        return FUSIONS[self.config.fusion].modalities

    def forward(
        self,
        audio: Tensor,
        video: Tensor,
        mask_a: Tensor | None = None,
        mask_v: Tensor | None = None,
        *,
        layout: Layout = "TBCHW",
        return_aux: bool = False,
        return_heads: bool = False,
        per_step: bool = False,
    ) -> Any:
        """Return logits [B, K]; with `return_aux` or `return_heads`, also a dict of intermediate results.

        Args:
            audio: float [T, B, 1, F, L], or static [B, 1, F, L], converted to T steps as `audio_mode` says.
            video: float [T, B, C, H, W], or static [B, C, H, W], repeated at every step.
            mask_a: bool [B], which samples have audio; None: all.
            mask_v: bool [B], which samples have video; None: all.
            layout: `BTCHW` for inputs [B, T, ...], as loaders return them.
            return_aux: also return `stages` (streams of each modality after each stage), `masks` (attention
                masks, bool) and `rates` (mean firing rates) by name of the neuron, `features` [B, W] of the
                head, and `step_logits` [T, B, K].
            return_heads: also return the logits of `steps` [T, B, K] and of each modality's own head [B, K].
            per_step: return only the logits of each step, [T, B, K].

        Raises:
            ValueError: the shapes do not match each other or the settings, a mask is not bool [B], or in
                evaluation mode an input is not finite.
        """
        audio, video, steps = arrange_inputs(audio, video, self.config, layout, self.head.weight.dtype)
        present = {"audio": mask_a, "video": mask_v}
        self._check(audio, video, present)
        if per_step:
            features = self._features(audio, video, present, steps)
            return torch.stack([self._classify(step) for step in features])
        if return_heads:
            alone: dict[str, Tensor] = {}
            features = self._features(audio, video, present, steps, alone=alone)
            heads = {name: head(alone[name].mean(0)) for name, head in self.aux_heads.items()}
            heads["steps"] = torch.stack([self._classify(step) for step in features])
            return self._classify(features.mean(0)), heads
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
            ValueError: as for `forward`.
        """
        if self.training:
            msg = "Cannot run a network in training mode step by step."
            raise UsageError(msg, hint="Call model.eval() first")
        if not FUSIONS[self.config.fusion].causal:
            msg = f"fusion={self.config.fusion!r} reads all time steps at once and cannot run step by step."
            raise UsageError(msg, hint="Call the model on all steps, or choose fusion='cmqka'")
        dtype, present = self.head.weight.dtype, {"audio": mask_a, "video": mask_v}
        audio, video, _ = arrange_inputs(audio[None], video[None], self.config, "TBCHW", dtype)
        self._check(audio, video, present)
        with stateful(state.membranes) as membranes:
            features = self._features(audio, video, present, 1)[0]
        total, steps = features if state.total is None else state.total + features, state.steps + 1
        return self._classify(total / steps), StreamState(membranes, total, steps)

    def preprocess(self, batch: AVBatch) -> dict[str, Tensor | None]:
        """Return the arguments of `forward` for a batch of `avdata.open`, on the device of the network.

            logits = model(**model.preprocess(batch))

        Frames are normalized as in training. Mels are used as the loader normalizes them, with the statistics
        of its own dataset. Masks follow `batch.present`, so that silence and black frames count as absent;
        they are None if all samples have the modality.

        Args:
            batch: batch with mels, and with uint8 frames unless the network reads audio only.

        Raises:
            ValueError: the batch has no mels, or not the frames that the network reads.
        """
        if batch.mel is None or (batch.frames is None and "video" in self.modalities):
            missing = "mels" if batch.mel is None else "frames"
            msg = f"The batch has no {missing}, which the network reads."
            raise ValueError(msg)
        device = self.head.weight.device
        audio = batch.mel.to(device).transpose(0, 1).contiguous()
        if batch.frames is None:
            video = audio.new_zeros((len(batch.mel), self.config.video_channels, SMALLEST, SMALLEST))
        else:
            video = normalize_frames(batch.frames.to(device))
        return {"audio": audio, "video": video, **presence_masks(batch.present, device)}

    def _check(self, audio: Tensor, video: Tensor, present: Present) -> None:
        check_masks(present, audio.shape[1])
        # A compiled graph cannot depend on values. In training the gradient becomes NaN, which is noticed.
        if not (self.training or torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            inputs = {"audio": audio, "video": video}
            check_finite({name: inputs[name] for name in self.modalities}, present)

    def _features(
        self,
        audio: Tensor,
        video: Tensor,
        present: Present,
        steps: int,
        stages: list[ModalityTensors] | None = None,
        alone: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the features of each step, [T, B, W]; put those of each modality into `alone`."""
        inputs = {"audio": audio, "video": video}
        if isinstance(self.join, PooledInputs):
            return self.join.pool(inputs, present, steps)
        streams = {name: inputs[name] for name in self.encoders}
        for stage in range(3):
            streams = self._stage(stage, streams, present, steps)
            if stages is not None:
                stages.append(streams)
        features = {}
        for name, stream in streams.items():
            feature, mask = self.readouts[name](stream).mean((3, 4)), present[name]
            features[name] = feature if mask is None else feature * mask[None, :, None]
        if alone is not None:
            alone |= features
        return self.join.collect(features)

    def _stage(self, stage: int, streams: ModalityTensors, present: Present, steps: int) -> ModalityTensors:
        run = checkpointed if self.config.checkpoint and torch.is_grad_enabled() else call
        streams = {name: self.encoders[name][stage](x, steps, run) for name, x in streams.items()}  # type: ignore[index]
        if str(stage + 1) in self.fusions:
            streams = run(self.fusions[str(stage + 1)], streams, present)
        return streams

    def _classify(self, features: Tensor) -> Tensor:
        """Return logits [B, K] of features [B, W]."""
        return self.head(self.dropout(self.join.combine(features)))

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
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> SNNergy:
        """Load a network that `save_pretrained` or `push_to_hub` wrote.

        Args:
            pretrained_model_name_or_path: folder, or repository on the Hugging Face Hub.
            options: see `huggingface_hub.PyTorchModelHubMixin.from_pretrained`.

        Raises:
            AvdataError: config.json or the weights are damaged, or do not match.
        """
        with stored_network_errors(pretrained_model_name_or_path):
            network: SNNergy = super().from_pretrained(pretrained_model_name_or_path, **options)
        return network

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: object = None, **options: Any) -> SNNergy:
        settings = dict(config) if isinstance(config, Mapping) else {}
        facts = settings.pop("dataset", None)
        parsed = parse_settings(settings)
        check_shapes(cls, parsed, pretrained_shapes(model_id, options))
        options["force_download"] = False  # it was downloaded for the check
        network: SNNergy = super()._from_pretrained(model_id=model_id, config=parsed, **options)
        network.dataset = None if facts is None else DatasetFacts.parse(facts)
        return network


def recalibrate(model: nn.Module, batches: Iterable[InputBatch]) -> None:
    """Set the statistics of all batch norms to their mean over training batches.

    Spikes are sparse, so that after a short training the moving averages are far from the layers' inputs
    and a network evaluated with them is almost silent. Call this before every evaluation and before saving.

    Args:
        model: module with batch norms.
        batches: (audio [T, B, 1, F, L], video [T, B, C, H, W]), or with mask_a and mask_v as for
            `SNNergy.forward`: an absent modality sends no message to the later layers of the other. 10 to 32
            batches are enough.

    Raises:
        UsageError: `batches` is empty.
    """
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        msg = "No batches to recalibrate on."
        raise UsageError(msg, hint="Use batches of the train split")
    # `update_bn` calls a model with the first element of a batch as its only argument.
    unpack = model.register_forward_pre_hook(lambda _, inputs: inputs[0], prepend=True)
    try:
        update_bn(((pair,) for pair in chain([first], remaining)), model)
    finally:
        unpack.remove()
