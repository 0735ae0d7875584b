"""Iterate samples one by one in torch `DataLoader` workers, with a resumable state per worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from avdata.errors import AvdataError, UnavailableError
from avdata.streaming.batch import AVSample
from avdata.streaming.epochs import is_integer
from avdata.streaming.protocols import SampleSource

_log = logging.getLogger(__name__)


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
        self._rank = dataset.rank_info()
        # Now, not at the first sample: with accelerate, a rank creates an iterator that it does not read, and
        # must count the same epochs as rank 0.
        self._start(dataset.begin_pass(), 0)

    def _start(self, epoch: int, position: int) -> None:
        data, rank, world = self._dataset, self._rank.plan_rank, self._rank.world_size
        self._epoch, self._position = epoch, position
        order = data.order_of(epoch)
        own = order[rank::world]
        missing = -(-len(order) // world) - len(own)
        # At most one is missing. The order is copied only then.
        numbers = np.append(own, (own if len(own) else order)[:missing]) if missing else own
        self._numbers = numbers[self._worker :: self._num_workers]
        self._num_real = len(own[self._worker :: self._num_workers])

    def __next__(self) -> AVSample:
        sample = self._next()
        return sample.as_dict() if self._dataset.as_dict else sample  # type: ignore[return-value]

    def _next(self) -> AVSample:
        if self._position >= len(self._numbers):
            raise StopIteration
        number, is_real = int(self._numbers[self._position]), self._position < self._num_real
        self._position += 1
        if self._position == len(self._numbers):
            self._dataset.end_pass(self._epoch)
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
        return {**self._identity(), "epoch": self._epoch, "given": self._position}

    def _identity(self) -> dict[str, Any]:
        split = {"turns": self._num_workers, "world_size": self._rank.world_size}
        return {**self._dataset.identity(), **split}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`.

        Raises:
            AvdataError: The state is of another stream, or of another number of workers or ranks.
        """
        hint = "`AVDataset.loader` resumes with any number of ranks and workers"
        check_state(state, self._identity(), ("epoch", "given"), hint)
        self._dataset.resume_pass(int(state["epoch"]))
        self._start(int(state["epoch"]), int(state["given"]))


def check_state(state: Any, identity: Mapping[str, Any], counts: tuple[str, ...], hint: str) -> None:
    """Raise an error unless a state belongs to a stream and holds its counts.

    Args:
        state: The state, from outside.
        identity: Properties that it must share with the stream.
        counts: Names of the integers that it must hold.
        hint: What to do about a state of another stream.

    Raises:
        AvdataError: The state is of another stream, or a count is missing or invalid.
    """
    if not isinstance(state, Mapping):
        msg = f"Invalid state: expected the dict of `state_dict`, received {type(state).__name__}."
        raise AvdataError(msg)
    for name, expected in identity.items():
        if state.get(name) != expected:
            msg = f"State mismatch: {name} is {expected!r}, the state has {state.get(name)!r}."
            raise AvdataError(msg, hint=hint)
    for name in counts:
        if not is_integer(state.get(name)) or state[name] < 0:
            msg = f"Invalid state: {name} is {state.get(name)!r}, expected a non-negative integer."
            raise AvdataError(msg, hint="load what `state_dict` returned, complete")
