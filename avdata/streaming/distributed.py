"""Rank and world size of this process."""

from __future__ import annotations

import os

import torch


def rank_and_world() -> tuple[int, int, int]:
    """Return rank, world size, and ranks per node from torch.distributed or the launcher's environment."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    else:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    # GROUP_WORLD_SIZE is the same on all ranks. LOCAL_WORLD_SIZE differs between nodes with different numbers
    # of ranks, and two ranks would compute the same plan rank.
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", world))
    return rank, world, max(world // nodes, 1) if world % nodes == 0 else 1
