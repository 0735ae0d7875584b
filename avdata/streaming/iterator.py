"""Iterate samples one by one in torch `DataLoader` workers, with a resumable state per worker."""

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
    """Epoch counter in shared memory, so that persistent `DataLoader` workers see `set_epoch`."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))

    def set(self, epoch: int) -> None:
        """Set the epoch for running and future workers of this process."""
        if self._owner != os.getpid():
            # A process that inherited the dataset gets its own counter, which only its workers share.
            self._owner, self._epoch = os.getpid(), _shared(torch.zeros_like(self._epoch))
        self._epoch.fill_(epoch)

    def get(self) -> int:
        """Return the epoch set last."""
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
    """Iterator over a rank's samples in epoch order, divided among `DataLoader` workers.

    All ranks get the same number of samples: a rank with fewer repeats one of its samples with weight 0.

    The state counts the samples that this process returned, so that torchdata's `StatefulDataLoader` resumes
    with the next one and reads no earlier ones. As there, the number of workers must stay the same.
    """

    def __init__(self, dataset: SampleSource) -> None:
        worker = get_worker_info()
        self._dataset = dataset
        self._last: AVSample | None = None
        self._worker, self._num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._start(dataset.shared_epoch(), 0)

    def _start(self, epoch: int, position: int) -> None:
        data = self._dataset
        self._epoch, self._position = epoch, position
        order = data.order_of(epoch)
        own = order[data.plan_rank :: data.world_size]
        missing = -(-len(order) // data.world_size) - len(own)
        # At most one is missing. The order is copied only then.
        numbers = np.append(own, (own if len(own) else order)[:missing]) if missing else own
        self._numbers = numbers[self._worker :: self._num_workers]
        self._num_real = len(own[self._worker :: self._num_workers])

    def __next__(self) -> AVSample:
        if self._position >= len(self._numbers):
            raise StopIteration
        number, is_real = int(self._numbers[self._position]), self._position < self._num_real
        self._position += 1
        try:
            self._last = self._dataset.sample(number)
        except AvdataError as error:
            if self._dataset.on_error == "raise" or isinstance(error, UnavailableError):
                raise
            _log.warning("skipped: %s", error.message)
            # The sample carries the message, because a count in a worker stays in that process.
            substitute = self._substitute(error)
            metadata = {**substitute.metadata, "skipped": error.message}
            return replace(substitute, metadata=metadata, weight=0.0)
        return self._last if is_real else replace(self._last, weight=0.0)

    def _substitute(self, error: AvdataError) -> AVSample:
        """Return the previous sample, or before the first one the next readable; else raise `error`."""
        for number in self._numbers[self._position :].tolist() if self._last is None else ():
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
        """Return the number of samples that this process returned, and the identity of the stream."""
        data = self._dataset
        split = {"turns": self._num_workers, "world_size": data.world_size}
        return {**data.identity(), **split, "epoch": self._epoch, "given": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`.

        Raises:
            AvdataError: The state is of another stream, or of another number of workers or ranks.
        """
        current = self.state_dict()
        for name in set(current) - {"epoch", "given"}:
            if state.get(name) != current[name]:
                msg = f"State mismatch: {name} is {current[name]!r}, the state has {state.get(name)!r}."
                hint = "`AVDataset.loader` resumes with any number of ranks and workers"
                raise AvdataError(msg, hint=hint)
        self._dataset.set_epoch(int(state["epoch"]))
        self._start(int(state["epoch"]), int(state["given"]))
