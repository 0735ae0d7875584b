"""One sample after the other, for a torch `DataLoader`, and where each of its processes has got to."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from avdata.errors import AvdataError, UnavailableError
from avdata.streaming.batch import AVSample
from avdata.streaming.protocols import SampleSource

_log = logging.getLogger(__name__)


class SharedEpoch:
    """The epoch, in memory that the processes of a `DataLoader` see; with `persistent_workers` they stay."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))

    def set(self, epoch: int) -> None:
        """Say it to processes that are there, and to those that come."""
        if self._owner != os.getpid():
            # A process that was given the dataset by another tells its own workers alone.
            self._owner, self._epoch = os.getpid(), _shared(torch.zeros_like(self._epoch))
        self._epoch.fill_(epoch)

    def get(self) -> int:
        """What was said last."""
        return int(self._epoch)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._epoch.is_shared():
            self._owner, self._epoch = os.getpid(), _shared(self._epoch)


def _shared(number: torch.Tensor) -> torch.Tensor:
    with suppress(RuntimeError, OSError):  # a machine without shared memory
        number.share_memory_()
    return number


class SampleIterator(Iterator[AVSample]):
    """A rank's samples in the epoch's order; the processes of a `DataLoader` share them out.

    All ranks get as many: where the order ends, a sample that the rank had before comes again with weight 0.

    Its state counts what this process has given, so that torchdata's `StatefulDataLoader` goes on with the
    next sample and reads none of those before. As there, the number of processes must stay the same.
    """

    def __init__(self, dataset: SampleSource) -> None:
        worker = get_worker_info()
        self._dataset = dataset
        self._last: AVSample | None = None
        self._turn, self._turns = (worker.id, worker.num_workers) if worker else (0, 1)
        self._start(dataset.shared_epoch(), 0)

    def _start(self, epoch: int, given: int) -> None:
        data = self._dataset
        self._epoch, self._given = epoch, given
        order = data.order_of(epoch)
        own = order[data.plan_rank :: data.world_size]
        missing = -(-len(order) // data.world_size) - len(own)
        # At most one, and only where ranks share unevenly is the order copied.
        numbers = np.append(own, (own if len(own) else order)[:missing]) if missing else own
        self._numbers = numbers[self._turn :: self._turns]
        self._real = len(own[self._turn :: self._turns])

    def __next__(self) -> AVSample:
        if self._given >= len(self._numbers):
            raise StopIteration
        number, real = int(self._numbers[self._given]), self._given < self._real
        self._given += 1
        try:
            self._last = self._dataset.sample(number)
        except AvdataError as error:
            if self._dataset.on_error == "raise" or isinstance(error, UnavailableError):
                raise
            _log.warning("skipped: %s", error.message)
            # The message goes along, since what is counted in a worker process stays there.
            return replace(self._substitute(error), metadata={"skipped": error.message}, weight=0.0)
        return self._last if real else replace(self._last, weight=0.0)

    def _substitute(self, error: AvdataError) -> AVSample:
        """The sample given last; at the beginning the next that can be read, without which nothing can be."""
        for number in self._numbers[self._given :].tolist() if self._last is None else ():
            try:
                self._last = self._dataset.sample(number)
            except UnavailableError:
                raise
            except AvdataError:
                continue
            break
        if self._last is None:
            raise error
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """What this process has given, and of which stream."""
        data = self._dataset
        split = {"turns": self._turns, "world_size": data.world_size}
        return {**data.identity(), **split, "epoch": self._epoch, "given": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            AvdataError: the state is of another stream, or of another number of processes or ranks.
        """
        here = self.state_dict()
        for name in set(here) - {"epoch", "given"}:
            if state.get(name) != here[name]:
                msg = f"the state is of another stream: {name} {state.get(name)!r} there, {here[name]!r} here"
                hint = "`AVDataset.loader` goes on with any number of ranks and workers"
                raise AvdataError(msg, hint=hint)
        self._dataset.set_epoch(int(state["epoch"]))
        self._start(int(state["epoch"]), int(state["given"]))
