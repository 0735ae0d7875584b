"""The processes of a run: on which device each works, and how they add up what they found.

Started by itself, a run is one process; under torchrun it is as many as that started, on any number of
machines.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from avdata.errors import AvdataError, UsageError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Device = Literal["auto", "cpu", "cuda"]

PRECISIONS: Mapping[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}

# A process that dies closes its connections, which the others notice at once; this is for one that hangs.
TIMEOUT_S = timedelta(minutes=10)


def init_fabric(device: Device, precision: str, *, sync_batchnorm: bool = False) -> Fabric:
    """The processes, connected.

    Raises:
        UsageError: the device, or the precision on it, is not to be had.
    """
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        msg = "--device cuda: torch sees no GPU"
        raise UsageError(msg, hint="leave it out to train on the CPU")
    if precision == "fp16" and kind == "cpu":
        msg = "precision=fp16 needs a GPU"
        raise UsageError(msg, hint="leave it at auto, or take bf16 or 32")
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if sync_batchnorm and kind == "cpu":
        msg = "sync_batchnorm=true needs GPUs: torch has no synchronized batch norm for the CPU"
        raise UsageError(msg, hint="leave it out; the statistics of evaluation are shared in any case")
    # All machines must refuse alike, or some would wait for those that did.
    machines = int(os.environ.get("GROUP_WORLD_SIZE", world // local))
    if world != local * machines:
        msg = f"{world} processes, {local} of them on this machine: every machine must have equally many"
        raise UsageError(msg, hint="give each torchrun the same --nproc-per-node")
    # Loading it takes seconds, and only training needs it.
    from lightning.fabric import Fabric  # noqa: PLC0415
    from lightning.fabric.strategies.ddp import DDPStrategy  # noqa: PLC0415

    _quiet()
    chosen = precision if precision != "auto" else "bf16" if kind == "cuda" else "32"
    # Batch norms are recalibrated before their statistics are used: sending those about would be for nothing.
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=TIMEOUT_S)
    fabric = Fabric(
        accelerator=kind, devices=local, num_nodes=world // local,
        strategy=strategy if world > 1 else "auto", precision=PRECISIONS[chosen],
    )  # fmt: skip
    fabric.launch()
    return fabric


def _quiet() -> None:
    """Lightning's notes on its own defaults do not concern a user of this trainer."""
    # It sets its loggers' levels as it loads: not before.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    # Gradients of channels_last are copied into DDP's buckets, which costs little and is said once a process.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def sum_over_ranks(fabric: Fabric, value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if fabric.world_size == 1:
        return value
    summed = value.clone()
    torch.distributed.all_reduce(summed)
    return summed


def sync_batch_norm_stats(fabric: Fabric, network: nn.Module) -> None:
    """Give the batch norms of all processes the mean of their statistics, as if one had seen all batches."""
    if fabric.world_size == 1:
        return
    names = ("running_mean", "running_var")
    held = [part for name, part in network.named_buffers() if name.rsplit(".", 1)[-1] in names]
    flat = torch.cat([part.flatten() for part in held])
    torch.distributed.all_reduce(flat)
    for part, mean in zip(held, (flat / fabric.world_size).split([p.numel() for p in held]), strict=True):
        part.copy_(mean.view_as(part))


def broadcast_from_rank0(fabric: Fabric, value: bytes | None) -> bytes | None:
    """What the first process has, on all: each machine has disks of its own."""
    if fabric.world_size == 1:
        return value
    return fabric.broadcast(value)


@contextmanager
def explain_lost_ranks(fabric: Fabric) -> Iterator[None]:
    """Say in a sentence that another process of the run has ended.

    torch reports it as an error of whatever exchange was under way.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        signs = (
            "Connection closed by peer",
            "Connection reset",
            "Broken pipe",
            "NCCL",
            "Timed out",
            "timeout",
        )
        if fabric.world_size == 1 or not any(sign in said for sign in signs):
            raise
        msg = (
            f"process {fabric.global_rank} of {fabric.world_size} lost another one of this run"
            f" ({said.splitlines()[0][:200]})"
        )
        hint = "the one that ended first says why; then go on with the same command and --resume"
        raise AvdataError(msg, hint=hint) from error
