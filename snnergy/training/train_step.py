"""One optimizer step: the network, its weights' moving average, and everything that changes them.

Nothing here depends on how often a run was interrupted or on how many processes share it: draws come from
(seed, step), a step is `batch_size` samples over all processes, and the loss is their mean.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avdata.errors import AvdataError
from snnergy.data import AVBatch, Batch, move_to_device, to_batch
from snnergy.models.network import SNNergy
from snnergy.training.augment import augment, mixup
from snnergy.training.config import TrainConfig
from snnergy.training.diagnostics import UNSTABLE_HINT, find_non_finite
from snnergy.training.distributed import sum_over_ranks
from snnergy.training.gradient_modulation import OGMGE

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class TrainStep:
    """A network that learns.

    Attributes:
        network: the network itself, on the device.
        average: a copy that follows it (EMA), or the network where there is none: what is evaluated.
        step: optimizer steps that were made.
    """

    def __init__(self, network: SNNergy, config: TrainConfig, fabric: Fabric, *, repeated: bool) -> None:
        self._config, self._fabric, self._repeated = config, fabric, repeated
        # What scales the loss, in float16.
        self._scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
        self.network = network.to(fabric.device)
        self.average = copy.deepcopy(self.network) if config.ema else self.network
        self.average.requires_grad_(config.ema is None)
        self._modulation = OGMGE(self.network, config.ogm_ge) if config.ogm_ge else None
        trained: nn.Module = self.network
        if config.sync_batchnorm and fabric.world_size > 1:
            trained = nn.SyncBatchNorm.convert_sync_batchnorm(trained)
        groups = network.parameter_groups(config.weight_decay)
        # Fused optimizers unscale by themselves, which is too late to clip.
        optimizer = torch.optim.AdamW(
            groups, lr=config.lr or 1.0, betas=config.betas, fused=self._scaler is None
        )
        self._trained, self._optimizer = fabric.setup(trained, optimizer)
        self.step = 0

    def __call__(
        self, batches: Sequence[AVBatch], *, real: int, epoch: int, rate: float
    ) -> tuple[Tensor, Tensor]:
        """Make one optimizer step.

        Args:
            batches: this process's parts of the step.
            real: samples of the step over all processes, padding not counted.
            epoch: the epoch, of which the augmentation draws depend.
            rate: the learning rate.

        Returns:
            This process's part of the mean loss, and the gradient's norm before clipping.

        Raises:
            AvdataError: the loss or the gradient is not finite; the message names the layer.
        """
        fabric, network = self._fabric, self.network
        network.train()
        # The state of the generators is thus a function of the step, and needs no keeping.
        torch.manual_seed(self._seed("torch", fabric.global_rank) % 2**63)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        lost = torch.zeros((), device=fabric.device)
        for part, batch in enumerate(batches):
            made, other, share = self._batch(batch, part, epoch)
            with fabric.no_backward_sync(self._trained, enabled=part + 1 < len(batches)):
                logits = self._trained(made.audio, made.video)
                loss = self._loss(logits.float(), made, other, share) / real
                if self._modulation:
                    self._modulation.count(made.label, made.weight)
                # Processes' gradients are averaged, and this loss is a share of the sum.
                fabric.backward(loss * fabric.world_size)
            lost += loss.detach()
        if self._modulation:
            self._modulation.apply(self._seed("noise") % 2**63, lambda value: sum_over_ranks(fabric, value))
        norm = self._clip()
        self._check(batches, epoch, lost, norm)
        self._optimizer.step()
        self.step += 1
        self._update_ema()
        return lost, norm

    def _seed(self, what: str, *numbers: int) -> int:
        """A number of this step, for one use."""
        spread = np.random.SeedSequence([self._config.seed, self.step, *what.encode(), *numbers])
        return int(spread.generate_state(1, np.uint64)[0])

    def _batch(self, batch: AVBatch, part: int, epoch: int) -> tuple[Batch, Tensor, float]:
        config = self._config
        mel, frames, label, weight = move_to_device(batch, self._fabric.device)
        mel, frames = augment(
            mel, frames, batch.key, config.augment, seed=config.seed, epoch=epoch, repeated=self._repeated
        )
        draw = np.random.default_rng(self._seed("mixup", self._fabric.global_rank, part))
        return mixup(to_batch(mel, frames, label, weight), config.mixup, draw)

    def _loss(self, logits: Tensor, made: Batch, other: Tensor, share: float) -> Tensor:
        """The sum of the losses of the real samples."""
        smoothing = self._config.label_smoothing
        losses = functional.cross_entropy(logits, made.label, label_smoothing=smoothing, reduction="none")
        if share < 1:
            mixed = functional.cross_entropy(logits, other, label_smoothing=smoothing, reduction="none")
            losses = torch.lerp(mixed, losses, share)
        return (losses * made.weight).sum()

    def _clip(self) -> Tensor:
        """Clip the gradient, which Fabric unscales first; its norm before."""
        longest = self._config.clip or float("inf")
        norm = self._fabric.clip_gradients(
            self._trained, self._optimizer, max_norm=longest, error_if_nonfinite=False
        )
        assert isinstance(norm, Tensor)
        return norm

    def _check(self, batches: Sequence[AVBatch], epoch: int, lost: Tensor, norm: Tensor) -> None:
        """Stop before weights are spoilt. The backward is queued by now: asking costs a GPU little."""
        # With loss scaling an infinite gradient is daily business: the scaler leaves that step out.
        value = lost if self._scaler else lost + norm * 0
        if bool(value.isfinite()):
            return
        # The parts are made again as they were, for any of them may be the one.
        parts = [self._batch(batch, part, epoch)[0] for part, batch in enumerate(batches)]
        with self._fabric.autocast():
            where = find_non_finite(self.network, parts)
        msg = (
            f"at step {self.step + 1} the loss is {float(lost):.4g}, the gradient's norm {float(norm):.4g};"
            f" what is first not finite: {where}"
        )
        raise AvdataError(msg, hint=UNSTABLE_HINT)

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = self._config.ema
        if decay is None:
            return
        # While there are few steps the average is of those alone, and not of the first weights.
        share = 1 - min(decay, (1 + self.step) / (10 + self.step))
        ours: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(ours, theirs, share)

    def check_finite(self) -> None:
        """Whether the last step left weights and statistics that are worth keeping.

        Raises:
            AvdataError: it spoilt them, although its loss was finite; the message names the first.
        """
        for network in dict.fromkeys((self.network, self.average)):
            for name, value in network.state_dict().items():
                if not bool(value.isfinite().all()):
                    msg = f"after step {self.step} the network's {name} is not finite"
                    raise AvdataError(msg, hint=UNSTABLE_HINT)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning goes on from."""
        scaler = self._scaler
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "ema": self.average.state_dict() if self._config.ema else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.step = int(state["step"])
        self.network.load_state_dict(state["network"])
        if self._config.ema:
            self.average.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
