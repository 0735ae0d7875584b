"""One optimizer step: augmentation, forward and backward pass, clipping, AdamW, schedule and EMA.

A step does not depend on interruptions: random numbers are determined by (seed, step). It has `batch_size`
samples over all processes and parts, and the loss is their mean. Only batch norms depend on the number of
processes and parts: each normalizes the samples of one part, see `TrainConfig.batch_norm_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from avdata.errors import AvdataError
from avdata.streaming.batch import AVBatch
from snnergy.data import Batch, MelTransform, move_to_device
from snnergy.models.network import SNNergy
from snnergy.training.augment import augment, draw_kept_modalities
from snnergy.training.config import TrainConfig
from snnergy.training.diagnostics import UNSTABLE_HINT, find_non_finite
from snnergy.training.distributed import gather_over_ranks, sum_over_ranks
from snnergy.training.gradient_modulation import OGMGE
from snnergy.training.losses import StepLoss
from snnergy.training.step_inputs import StepInputs, mix_step

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class TrainStep:
    """Optimizer step of a network, with its state.

    Args:
        network: network to train.
        config: settings.
        fabric: launched Fabric.
        schedule: learning rate of each optimizer step, from 0.
        repeated: the mel of each step covers the complete window.
        mel: module on the device, from `mel_transform`; None: the mels of the loader.
        class_weights: weight of each label in the loss, float32 [K]; None: all are 1.
        per_step: classify each step, with the labels of the steps.

    Attributes:
        network: the network, on the device.
        average: moving average of its weights (EMA), or the network itself without EMA; used for evaluation.
        step: number of completed optimizer steps.
        tally: float64 [4], sums over this process since it was last reset: losses of samples, correct
            predictions, predictions, and samples.
    """

    def __init__(
        self,
        network: SNNergy,
        config: TrainConfig,
        fabric: Fabric,
        *,
        schedule: Callable[[int], float],
        repeated: bool,
        mel: MelTransform | None = None,
        class_weights: Tensor | None = None,
        per_step: bool = False,
    ) -> None:
        self._loss = StepLoss(config, class_weights)
        self._per_step = per_step
        self._options: dict[str, bool] = {"per_step": True} if per_step else {}
        self._config, self._fabric, self._repeated, self._mel = config, fabric, repeated, mel
        # Only float16 scales the loss.
        self._scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
        self.network = network.to(fabric.device)
        self._ema = AveragedModel(self.network, multi_avg_fn=self._average) if config.ema else None
        average = self._ema.requires_grad_(False).module if self._ema else self.network
        assert isinstance(average, SNNergy)
        self.average = average
        self._modulation = OGMGE(self.network, config.ogm_ge) if config.ogm_ge else None
        trained: nn.Module = self.network
        if config.sync_batchnorm and fabric.world_size > 1:
            trained = nn.SyncBatchNorm.convert_sync_batchnorm(trained)
        if config.compile:
            # Evaluation runs uncompiled: compiled graphs ignore the hooks that record spikes.
            trained = torch.compile(trained)  # type: ignore[assignment]
        groups = network.parameter_groups(config.weight_decay)
        # Fused optimizers unscale the gradient themselves, which is too late for clipping.
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=config.betas, fused=self._scaler is None)
        # The schedule multiplies the optimizer's rate of 1.
        self._scheduler = LambdaLR(optimizer, schedule)
        self._trained, self._optimizer = fabric.setup(trained, optimizer)
        self.tally = torch.zeros(4, dtype=torch.float64, device=fabric.device)
        self._set_step(0)

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def __call__(self, batches: Sequence[AVBatch], *, real: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Run one optimizer step.

        Args:
            batches: this process's parts of the step.
            real: number of samples of the step over all processes, without padding.
            epoch: number of the epoch, for augmentation.

        Returns:
            This process's part of the mean loss, and the norm of the gradient before clipping.

        Raises:
            AvdataError: loss or gradient is not finite; the message names the layer.
        """
        fabric, network = self._fabric, self.network
        network.train()
        # The state of the generators is a function of the step, so that checkpoints need not contain it.
        torch.manual_seed(self._seed("torch", fabric.global_rank) % 2**63)
        self._optimizer.zero_grad(set_to_none=True)
        inputs = self._inputs(batches, epoch)
        total = torch.zeros((), device=fabric.device)
        first, last = self._config.ogm_ge_epochs
        modulation = self._modulation if first <= epoch <= last else None
        for number in range(len(inputs)):
            part, other = inputs.part(number)
            with fabric.no_backward_sync(self._trained, enabled=number + 1 < len(inputs)):
                logits, heads = self._forward(part)
                loss = self._loss(logits, heads, part, other, inputs.share) / real
                if modulation:
                    modulation.count(part.label, part.weight)
                # DDP averages the gradients of the processes; this loss is a part of the sum.
                fabric.backward(loss * fabric.world_size)
            total += loss.detach()
            self._count(logits.detach(), part, other, inputs.share)
        if modulation:
            modulation.apply(self._seed("noise") % 2**63, lambda value: sum_over_ranks(fabric, value))
        norm = self._clip()
        self._check(inputs, total, norm)
        self._optimizer.step()
        self._scheduler.step()
        self.step += 1
        self.tally[0] += total * real
        if self._ema:
            self._ema.update_parameters(self.network)
        return total, norm

    def _count(self, logits: Tensor, inputs: Batch, other: Tensor, share: float) -> None:
        """Count correct predictions; the label of a mixture is that of its larger part."""
        is_real = inputs.weight > 0
        label = inputs.label if share >= 0.5 else other
        # [B], or [T, B] for steps.
        is_correct = logits.argmax(-1) == (label if label.dim() == 1 else label.T)
        self.tally[1] += (is_correct & is_real).sum()
        self.tally[2] += is_real.sum() * (is_correct.numel() // len(is_real))
        self.tally[3] += is_real.sum()

    def _seed(self, purpose: str, *numbers: int) -> int:
        """Return a seed of this step for one purpose."""
        sequence = np.random.SeedSequence([self._config.seed, self.step, *purpose.encode(), *numbers])
        return int(sequence.generate_state(1, np.uint64)[0])

    def _inputs(self, batches: Sequence[AVBatch], epoch: int) -> StepInputs:
        config, fabric = self._config, self._fabric
        parts, kept = [], []
        for batch in batches:
            mel, frames, label, weight = move_to_device(
                batch, fabric.device, self._mel, per_step=self._per_step
            )
            mel, frames = augment(
                mel, frames, batch.key, config.augment, seed=config.seed, epoch=epoch, repeated=self._repeated
            )
            parts.append((mel, frames, label, weight, batch.present))
            share = config.augment.hide
            kept.append(draw_kept_modalities(batch.key, share, seed=config.seed, epoch=epoch))
        rng = np.random.default_rng(self._seed("mixup"))
        return mix_step(
            parts, config.mixup, rng, cutmix=config.cutmix, rank=fabric.global_rank,
            gather=partial(gather_over_ranks, fabric), kept=torch.cat(kept),
        )  # fmt: skip

    def _forward(self, inputs: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if not self._loss.needs_heads:
            return self._trained(**inputs.arguments, **self._options), {}
        logits, heads = self._trained(**inputs.arguments, return_heads=True)
        return logits, heads

    def _clip(self) -> Tensor:
        """Clip the gradient, which Fabric unscales first; return its norm before clipping."""
        max_norm = self._config.clip or float("inf")
        norm = self._fabric.clip_gradients(
            self._trained, self._optimizer, max_norm=max_norm, error_if_nonfinite=False
        )
        assert isinstance(norm, Tensor)
        return norm

    def _check(self, inputs: StepInputs, loss: Tensor, norm: Tensor) -> None:
        """Raise before non-finite gradients reach the weights."""
        # The backward pass is already queued, so that this synchronization costs little on a GPU. With loss
        # scaling infinite gradients are normal: the scaler skips the step.
        value = loss if self._scaler else loss + norm * 0
        if bool(value.isfinite()):
            return
        # Any part of the step may contain the cause.
        parts = [inputs.part(number)[0] for number in range(len(inputs))]
        with self._fabric.autocast():
            where = find_non_finite(self.network, parts)
        msg = (
            f"Non-finite value at step {self.step + 1}: loss {float(loss):.4g},"
            f" gradient norm {float(norm):.4g}; first non-finite value: {where}."
        )
        raise AvdataError(msg, hint=UNSTABLE_HINT)

    def _average(self, averages: Sequence[Tensor], weights: Sequence[Tensor], _: Tensor | int) -> None:
        assert self._config.ema is not None
        # During the first steps a smaller decay reduces the weight of the initial values.
        decay = min(self._config.ema, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averages, weights, self.step)

    def _set_step(self, step: int) -> None:
        self.step = step
        if self._ema:
            # The initial values count as one model; otherwise torch would replace them in the first update.
            self._ema.n_averaged.fill_(1 + step)

    def check_finite(self) -> None:
        """Raise unless all weights and statistics are finite, so that they can be saved.

        Raises:
            AvdataError: a value is not finite, although the loss was; the message names the first.
        """
        for network in dict.fromkeys((self.network, self.average)):
            for name, value in network.state_dict().items():
                if not bool(value.isfinite().all()):
                    msg = f"Non-finite weights after step {self.step}: {name}."
                    raise AvdataError(msg, hint=UNSTABLE_HINT)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` restores."""
        scaler = self._scaler
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "ema": self.average.state_dict() if self._config.ema else None,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._set_step(int(state["step"]))
        self.network.load_state_dict(state["network"])
        if self._config.ema:
            self.average.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._scaler and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
