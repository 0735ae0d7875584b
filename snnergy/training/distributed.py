"""Processes of a distributed run: device selection, all-reduce and errors about lost ranks.

Without a launcher a run is one process. Under torchrun it has as many processes as torchrun starts, on one or
several machines.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
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

TIMEOUT_S = 600.0
"""For a process that hangs. One that exits closes its connections, and the others stop at once."""

_LOST_RANK_SIGNS = (
    "Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "Timed out", "timeout",
)  # fmt: skip


def init_fabric(device: Device, precision: str, *, sync_batchnorm: bool = False) -> Fabric:
    """Return a launched Fabric that connects all processes of the run.

    Raises:
        UsageError: the device, or the precision on it, is not available.
    """
    kind = _check_device(device, precision, sync_batchnorm=sync_batchnorm)
    world, local = _process_counts()
    # Importing Lightning takes seconds, and only training needs it.
    from lightning.fabric import Fabric  # noqa: PLC0415
    from lightning.fabric.strategies.ddp import DDPStrategy  # noqa: PLC0415

    _silence_lightning()
    chosen = precision if precision != "auto" else "bf16" if kind == "cuda" else "32"
    # Batch norms are recalibrated before their statistics are used, so that broadcasting them is wasted time.
    timeout = timedelta(seconds=TIMEOUT_S)
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=timeout)
    fabric = Fabric(
        accelerator=kind, devices=local, num_nodes=world // local,
        strategy=strategy if world > 1 else "auto", precision=PRECISIONS[chosen],
    )  # fmt: skip
    fabric.launch()
    return fabric


def select_device(device: Device) -> str:
    """Return `cpu` or `cuda`.

    Raises:
        UsageError: the device is not available.
    """
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        msg = "No GPU available to torch (device=cuda)."
        raise UsageError(msg, hint="Omit --device to use the CPU")
    return kind


def _check_device(device: Device, precision: str, *, sync_batchnorm: bool) -> str:
    kind = select_device(device)
    if precision == "fp16" and kind == "cpu":
        msg = "precision=fp16 needs a GPU."
        raise UsageError(msg, hint="Use precision=auto, bf16 or 32")
    if sync_batchnorm and kind == "cpu":
        msg = "sync_batchnorm=true needs GPUs: torch has no synchronized batch norm for the CPU."
        raise UsageError(msg, hint="Omit it; evaluation averages the statistics of all processes anyway")
    return kind


def _process_counts() -> tuple[int, int]:
    """Return the number of processes in all and on this machine."""
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Every machine must raise, also those whose own numbers agree, or they would wait for the others.
    machines = int(os.environ.get("GROUP_WORLD_SIZE", world // local))
    if world != local * machines:
        msg = (
            f"Unequal number of processes per machine: {local} here, {world} on {machines} machines;"
            " every machine must have equally many."
        )
        raise UsageError(msg, hint="Start torchrun with the same --nproc-per-node on every machine")
    return world, local


def _silence_lightning() -> None:
    """Suppress notes of Lightning and torch about defaults that users of this trainer cannot change."""
    # Lightning sets the levels of its loggers on import, so this must come after.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    # channels_last gradients are copied into DDP's buckets: cheap, but torch warns once per process.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Loss scaling may skip the first optimizer step; the schedule counts it.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")


def sum_over_ranks(fabric: Fabric, value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if fabric.world_size == 1:
        return value
    summed = value.clone()
    torch.distributed.all_reduce(summed)
    return summed


def gather_over_ranks(fabric: Fabric, value: Tensor) -> Tensor:
    """Return the tensors of all processes, of equal shapes, concatenated along the first axis."""
    if fabric.world_size == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def sync_batch_norm_stats(fabric: Fabric, network: nn.Module) -> None:
    """Replace the running statistics of all batch norms by their mean over the processes."""
    if fabric.world_size == 1:
        return
    names = ("running_mean", "running_var")
    buffers = [part for name, part in network.named_buffers() if name.rsplit(".", 1)[-1] in names]
    flat = torch.cat([part.flatten() for part in buffers])
    torch.distributed.all_reduce(flat)
    means = (flat / fabric.world_size).split([part.numel() for part in buffers])
    for part, mean in zip(buffers, means, strict=True):
        part.copy_(mean.view_as(part))


def broadcast_from_rank0(fabric: Fabric, value: bytes | None) -> bytes | None:
    """Return rank 0's value on all processes. Machines may not share a file system."""
    if fabric.world_size == 1:
        return value
    return fabric.broadcast(value)


def check_on_rank0(fabric: Fabric, check: Callable[[], None]) -> None:
    """Run `check` on rank 0 and raise its error on all processes, so that none waits for one that exited."""
    failure: tuple[bool, str, str | None] | None = None
    if fabric.is_global_zero:
        try:
            check()
        except AvdataError as error:
            failure = (isinstance(error, UsageError), error.message, error.hint)
    if fabric.world_size > 1:
        data = broadcast_from_rank0(fabric, json.dumps(failure).encode())
        failure = json.loads(data) if data else None
    if failure:
        is_usage, message, hint = failure
        raise (UsageError if is_usage else AvdataError)(message, hint=hint)


@contextmanager
def explain_lost_ranks(fabric: Fabric) -> Iterator[None]:
    """Raise an `AvdataError` if another process of the run has exited.

    torch reports this as an error of the collective operation in progress.
    """
    try:
        yield
    except RuntimeError as error:
        detail = str(error)
        if fabric.world_size == 1 or not any(sign in detail for sign in _LOST_RANK_SIGNS):
            raise
        msg = (
            f"Rank {fabric.global_rank} of {fabric.world_size} lost the connection to another rank:"
            f" {detail.splitlines()[0][:200]}"
        )
        hint = "See the output of the rank that exited first, then repeat the command with --resume"
        raise AvdataError(msg, hint=hint) from error
