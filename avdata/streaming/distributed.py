"""Rank and world size of this process, resolved each time an iteration or `len` starts.

A process learns its rank late: Lightning starts the other processes after the script opened the dataset, and
`torch.multiprocessing.spawn` passes an opened dataset to them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

import torch

from avdata.errors import UsageError
from avdata.streaming.sampling import plan_rank

RANK_HINT = "Pass rank= and world_size= to avdata.open, or initialize torch.distributed first"

# Names of the rank and the world size in the environment of each launcher, after torchrun's and Lightning's.
# mpirun inside a Slurm job starts one Slurm task per node, so the variables of MPI come first.
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
_LAUNCHERS = (*_MPI, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("SLURM_PROCID", "SLURM_NTASKS"))

# Wrappers of accelerate, also used by transformers, that divide the samples among processes themselves.
_DIVIDING_WRAPPERS = {
    "accelerate.data_loader": {"IterableDatasetShard", "DataLoaderDispatcher"},
    "transformers.trainer_pt_utils": {"IterableDatasetShard"},
}


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Place of this process among those that share an epoch.

    Attributes:
        rank: Rank of this process.
        world_size: Number of processes.
        ranks_per_node: Number of processes of a node; 1 if unknown or if nodes differ.
    """

    rank: int = 0
    world_size: int = 1
    ranks_per_node: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            msg = f"Invalid rank {self.rank} of {self.world_size} processes: ranks are 0 to world_size - 1."
            raise UsageError(msg, hint=RANK_HINT)

    @property
    def plan_rank(self) -> int:
        """The number of this rank in the plan; see `avdata.streaming.sampling.plan_rank`."""
        return plan_rank(self.rank, self.world_size, self.ranks_per_node)


def resolve_rank(rank: int | None = None, world_size: int | None = None) -> RankInfo:
    """Return the place of this process: explicit, from torch.distributed, or from the launcher's environment.

    Args:
        rank: Explicit rank.
        world_size: Explicit world size.

    Raises:
        UsageError: A launcher is detected, but the rank is unclear or invalid.
    """
    if rank is not None and world_size is not None:
        return RankInfo(rank, world_size)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        found = (distributed.get_rank(), distributed.get_world_size())
    else:
        found = _rank_of_environment(os.environ)
    own = found[0] if rank is None else rank
    world = found[1] if world_size is None else world_size
    is_detected = rank is None and world_size is None
    return RankInfo(own, world, _ranks_per_node(os.environ, world) if is_detected else 1)


def is_divided_by_wrapper(frame: FrameType | None = None) -> bool:
    """Return whether a wrapper on the call stack divides the samples of the dataset among processes.

    accelerate offers iterable datasets no other sign: its wrappers only call `iter` and `len`.
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        wrappers = _DIVIDING_WRAPPERS.get(frame.f_globals.get("__name__", ""))
        if wrappers and type(frame.f_locals.get("self")).__name__ in wrappers:
            return True
        frame = frame.f_back
    return False


def batch_size_of_fetch(frame: FrameType | None = None) -> int:
    """Return the batch size of the torch `DataLoader` that requests a sample, from the call stack.

    torch requests the samples of an iterable dataset one by one, and states the size of the batch nowhere
    else. 1 without batches, or if no `DataLoader` is on the stack. If a wrapper divides the samples among
    processes, the size of a batch of all processes.
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        module, values = frame.f_globals.get("__name__", ""), frame.f_locals
        if module in _DIVIDING_WRAPPERS and isinstance(values.get("real_batch_size"), int):
            return int(values["real_batch_size"])
        if module == "torch.utils.data._utils.fetch":
            places = values.get("possibly_batched_index")
            return len(places) if isinstance(places, list) else 1
        frame = frame.f_back
    return 1


def _rank_of_environment(variables: Mapping[str, str]) -> tuple[int, int]:
    rank, world = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    if rank is not None and world is not None:
        return rank, world
    local, node = _number(variables, "LOCAL_RANK"), _number(variables, "NODE_RANK")
    if rank is None and local is not None and (world or 1) > 1:
        per_node = _ranks_per_lightning_node(variables, world or 1)
        if not node:
            return local, world or 1
        if per_node is not None:
            return node * per_node + local, world or 1
    for rank_name, size_name in _LAUNCHERS:
        own, size = _number(variables, rank_name), _number(variables, size_name)
        if (
            own is None
            or size is None
            or (world or size) != size
            or (rank if rank is not None else own) != own
        ):
            continue
        # `sbatch` starts its script once, as task 0 of as many as the job may start; `srun` sets the step.
        is_batch_script = rank_name == "SLURM_PROCID" and own == 0 and size > 1
        if is_batch_script and "SLURM_JOB_ID" in variables and "SLURM_STEP_ID" not in variables:
            msg = f"Unclear rank: this Slurm job has {size} tasks, but srun did not start this process."
            raise UsageError(msg, hint="Start it with srun, or pass rank=0, world_size=1 to avdata.open")
        return own, size
    return _alone_or_unclear(variables, rank, world)


def _alone_or_unclear(variables: Mapping[str, str], rank: int | None, world: int | None) -> tuple[int, int]:
    """Return the only rank of one process, unless variables of a launcher say that there are others."""
    if rank is not None or (world or 1) > 1:
        present, missing = ("RANK", "WORLD_SIZE") if rank is not None else ("WORLD_SIZE", "RANK")
        msg = f"Unclear rank: the environment sets {present}={variables[present]}, but not {missing}."
        raise UsageError(msg, hint=f"Set {missing}, or {RANK_HINT}")
    for rank_name, size_name in (*_MPI, ("SLURM_PROCID", "SLURM_NTASKS"), ("LOCAL_RANK", "WORLD_SIZE")):
        if world is None and rank_name in variables and size_name not in variables:
            msg = f"Unclear rank: the environment sets {rank_name}, but not {size_name}."
            raise UsageError(msg, hint=RANK_HINT)
    return 0, 1


def _ranks_per_lightning_node(variables: Mapping[str, str], world: int) -> int | None:
    """Return the ranks per node where Lightning's launcher runs on several nodes, None if unknown."""
    local_world = _number(variables, "LOCAL_WORLD_SIZE")
    nodes = _number(variables, "GROUP_WORLD_SIZE") or _number(variables, "NUM_NODES")
    if local_world is None and nodes and world % nodes == 0:
        return world // nodes
    return local_world


def _ranks_per_node(variables: Mapping[str, str], world: int) -> int:
    # GROUP_WORLD_SIZE is the same on all ranks. LOCAL_WORLD_SIZE differs between nodes with different numbers
    # of ranks, and two ranks would compute the same plan rank.
    nodes = _number(variables, "GROUP_WORLD_SIZE")
    if nodes is None and _number(variables, "SLURM_STEP_NUM_TASKS") == world:
        nodes = _number(variables, "SLURM_STEP_NUM_NODES")
    return max(world // nodes, 1) if nodes and world % nodes == 0 else 1


def _number(variables: Mapping[str, str], name: str) -> int | None:
    text = variables.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        msg = f"Invalid environment variable {name}={text!r}: must be a non-negative integer."
        raise UsageError(msg, hint=RANK_HINT)
    return int(text)
