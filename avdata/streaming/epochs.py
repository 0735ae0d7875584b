"""Epochs and ranks of a dataset that several processes and `DataLoader` workers read.

Every pass that is not a resume is a new epoch. The counter is in shared memory: the workers of a torch
`DataLoader` begin passes, and the process that created the loader is not informed.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from avdata.errors import AvdataError, UsageError
from avdata.storage.live_objects import LiveObjects
from avdata.streaming.distributed import RankInfo, is_divided_by_wrapper, resolve_rank

MAX_EPOCH = 2**31 - 1

_SLOTS = 64  # passes of workers whose epoch is recorded

_POLL_S = 0.001

_PATIENCE_S = 300.0  # how long a worker waits for worker 0 to begin the same pass


class EpochCounter:
    """Number of the next epoch, shared by a process and its `DataLoader` workers.

    Worker 0 decides the epoch of a pass and publishes it; the others wait for it. A pass of workers is
    identified by the number of its first process and by how often the worker began a pass.

    Layout of the shared int64 array: the next epoch, then for each slot the epoch and the tag of a pass.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._shared = _shared(torch.zeros(1 + 2 * _SLOTS, dtype=torch.int64))
        # The epoch of this process, and the counter when it was stored.
        self._epoch, self._stored_at = 0, 0
        self._begun = 0
        _counters.add(self)

    def get(self) -> int:
        """Return the epoch of the current pass, or of the next one if none has begun or the last is over."""
        following = int(self._words()[0])
        # Workers have begun passes since.
        return self._epoch if following == self._stored_at or get_worker_info() else following - 1

    def following(self) -> int:
        """Return the epoch of the next pass, also in a worker."""
        return int(self._words()[0])

    def set(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self._store(epoch, epoch)

    def resume(self, epoch: int) -> None:
        """Continue a pass of an epoch; the next one gets the number after it."""
        self._store(epoch, epoch + 1)

    def end(self, epoch: int) -> None:
        """Record that all of an epoch was handed out."""
        if self._epoch == epoch and self._stored_at == epoch + 1:
            self._epoch = epoch + 1

    def begin(self) -> int:
        """Begin a pass and return its epoch, the same in all workers of a pass."""
        worker = get_worker_info()
        words = self._words()
        if worker is None or not self._shared.is_shared():
            epoch = int(words[0])
            self._store(epoch, epoch + 1)
            return epoch
        self._begun += 1
        tag = (_launch_number(worker.id, worker.seed) << 20) + self._begun
        slot = 1 + 2 * (tag % _SLOTS)
        if worker.id == 0:
            words[slot] = epoch = int(words[0])
            words[slot + 1] = tag  # last: from now on the others read the epoch
            words[0] = epoch + 1
        else:
            epoch = _await_epoch(words, slot, tag)
        self._epoch = epoch
        return epoch

    def _store(self, epoch: int, following: int) -> None:
        worker = get_worker_info()
        self._epoch, self._stored_at = epoch, following
        if worker is None or worker.id == 0:
            self._words()[0] = following

    def own(self) -> None:
        """Replace a counter that another process created by a copy, which only workers of this one share."""
        if self._owner != os.getpid() and get_worker_info() is None:
            self._owner, self._shared = os.getpid(), _shared(self._shared.clone())

    def _words(self) -> np.ndarray:
        self.own()
        return self._shared.numpy()

    def __getstate__(self) -> dict[str, Any]:
        self.own()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._shared.is_shared():
            self._owner, self._shared = os.getpid(), _shared(self._shared)
        _counters.add(self)


_counters: LiveObjects[EpochCounter] = LiveObjects()


def _own_counters() -> None:
    for counter in list(_counters):
        counter.own()


if hasattr(os, "register_at_fork"):
    # Forked ranks inherit a counter; each must have its own before it forks `DataLoader` workers.
    os.register_at_fork(before=_own_counters)


def _shared(numbers: torch.Tensor) -> torch.Tensor:
    with suppress(RuntimeError, OSError):  # a machine without shared memory
        numbers.share_memory_()
    return numbers


def _launch_number(worker_id: int, seed: int) -> int:
    """Return a number that the workers of a `DataLoader` iterator share, and other workers do not.

    Their processes are numbered consecutively. Their seeds repeat if the program seeds torch each epoch.
    """
    identity = multiprocessing.current_process()._identity
    return int(identity[-1] - worker_id if identity else seed - worker_id) % 2**40


def _await_epoch(words: np.ndarray, slot: int, tag: int) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while int(words[slot + 1]) != tag:
        if time.monotonic() > deadline:
            msg = f"Worker 0 of the DataLoader began no epoch within {_PATIENCE_S:.0f} s."
            raise AvdataError(msg, hint="Iterate the dataset equally often in all workers")
        time.sleep(_POLL_S)
    return int(words[slot])


class EpochStream:
    """Base class of datasets: the epoch, and the rank of this process.

    Args:
        rank: Explicit rank of this process, if any.
        world_size: Explicit number of processes, if any.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        for name, number, least in (("rank", rank, 0), ("world_size", world_size, 1)):
            if number is not None and (not is_integer(number) or number < least):
                msg = f"Invalid {name}={number!r}: must be an integer of at least {least}."
                raise UsageError(msg)
        self.explicit_rank = (rank, world_size)
        if rank is not None and world_size is not None:
            RankInfo(rank, world_size)
        self._epochs = EpochCounter()
        self._parent: tuple[int, RankInfo | None] = (0, None)

    @property
    def epoch(self) -> int:
        """Epoch of the current pass; after its last sample or batch, that of the next pass."""
        return self._epochs.get()

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.rank_info().rank

    @property
    def world_size(self) -> int:
        """Number of processes that share an epoch."""
        return self.rank_info().world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which determines the order together with the seed.

        Without it, every pass has the epoch after that of the pass before, also in the workers of a torch
        `DataLoader`.
        """
        if not is_integer(epoch) or not 0 <= epoch < MAX_EPOCH:
            msg = f"Invalid epoch {epoch!r}: must be an integer of at least 0."
            raise UsageError(msg)
        self._epochs.set(int(epoch))

    def begin_pass(self) -> int:
        """Begin a new pass and return its epoch."""
        return self._epochs.begin()

    def resume_pass(self, epoch: int) -> None:
        """Continue a pass of an epoch."""
        self._epochs.resume(epoch)

    def end_pass(self, epoch: int) -> None:
        """Record that all of an epoch was handed out."""
        self._epochs.end(epoch)

    def rank_info(self) -> RankInfo:
        """Return the rank and world size of this process, resolved now.

        Raises:
            UsageError: A launcher is detected, but the rank is unclear; or accelerate divides the samples of
                a dataset that was opened for one of several ranks.
        """
        rank, world_size = self.explicit_rank
        if is_divided_by_wrapper():
            if (world_size or 1) > 1:
                msg = (
                    f"Cannot divide rank {rank} of {world_size} again: accelerate divides iterable datasets."
                )
                hint = "Call avdata.open without rank and world_size, or use the dataset's own loader"
                raise UsageError(msg, hint=hint)
            return RankInfo()
        pid, info = self._parent
        if info is not None and pid == os.getpid() and get_worker_info() is not None:
            # torch.distributed is not initialized in a worker that was not forked.
            return info
        return resolve_rank(rank, world_size)

    def __getstate__(self) -> dict[str, Any]:
        info = None
        with suppress(UsageError):  # raised again where the rank is needed
            info = self.rank_info()
        return {**self.__dict__, "_parent": (0, info)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._parent = (os.getpid(), self._parent[1])


def is_integer(value: object) -> bool:
    """Return whether a value is an integer other than a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
