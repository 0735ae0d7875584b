"""Iterate samples one by one in torch `DataLoader` workers, with a resumable state per worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from avdata.errors import AvdataError, shorten
from avdata.streaming.batch import as_dict
from avdata.streaming.distributed import batch_size_of_fetch
from avdata.streaming.epochs import is_integer
from avdata.streaming.protocols import StreamSource
from avdata.streaming.transforms import log_skipped, occurrences, read_or_substitute

RESUME_HINT = "`AVDataset.loader` resumes with any number of ranks and workers, and any batch size"


class SampleIterator(Iterator[Any]):
    """Iterator over a rank's samples in epoch order, divided among `DataLoader` workers.

    All ranks get the same number of samples: a rank with fewer repeats one of its samples with weight 0.

    The workers read complete batches in turn, so that the batches of a `DataLoader` are those that it has
    without workers, as many as its `len`. If each worker ended with an incomplete batch, Lightning, which
    stops after `len` batches, would lose samples.

    The state counts the samples that this process returned, so that torchdata's `StatefulDataLoader` resumes
    with the next one and reads no earlier ones. As there, the number of workers must stay the same.
    """

    def __init__(self, dataset: StreamSource) -> None:
        worker = get_worker_info()
        self._dataset = dataset
        self._worker, self._num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._rank = dataset.rank_info()
        # Now, not at the first sample: with accelerate, a rank creates an iterator that it does not read, and
        # must count the same epochs as rank 0.
        self._start(dataset.begin_pass(), 0, 1)

    def _start(self, epoch: int, position: int, batch_size: int) -> None:
        data, rank, world = self._dataset, self._rank.plan_rank, self._rank.world_size
        self._epoch, self._position, self._batch_size = epoch, position, batch_size
        self._is_batch_size_known = False
        order = data.order_of(epoch)
        occurrence = occurrences(order) if data.has_transform else np.zeros(len(order), np.int64)
        self._num_real = len(order[rank::world])

        def share(values: np.ndarray) -> np.ndarray:
            own = values[rank::world]
            missing = -(-len(values) // world) - len(own)
            # At most one is missing. The order is copied only then.
            return np.append(own, (own if len(own) else values)[:missing]) if missing else own

        self._numbers, self._occurrence = share(order), share(occurrence)

    def _index(self, position: int) -> int:
        """Return the index among the rank's samples of the sample at a position of this worker."""
        batch, place = divmod(position, self._batch_size)
        return (batch * self._num_workers + self._worker) * self._batch_size + place

    def _set_batch_size(self, batch_size: int) -> None:
        if self._position and self._batch_size != batch_size:
            msg = f"State mismatch: the batch size is {batch_size}, the state has {self._batch_size}."
            raise AvdataError(msg, hint=RESUME_HINT)
        self._batch_size, self._is_batch_size_known = batch_size, True

    def __next__(self) -> Any:
        data = self._dataset
        if not self._is_batch_size_known and self._num_workers > 1:
            self._set_batch_size(batch_size_of_fetch())
        index = self._index(self._position)
        if index >= len(self._numbers):
            raise StopIteration
        self._position += 1
        if self._index(self._position) >= len(self._numbers):
            data.end_pass(self._epoch)
        number, sample = read_or_substitute(data, int(self._numbers[index]), log_skipped)
        if index >= self._num_real:
            sample = replace(sample, weight=0.0)
        occurrence = int(self._occurrence[index])
        item = data.transformed(number, sample, epoch=self._epoch, occurrence=occurrence)
        return as_dict(item) if data.as_dict else item

    def state_dict(self) -> dict[str, Any]:
        """Return the number of samples that this process returned, and the identity of the stream."""
        counts = {"epoch": self._epoch, "given": self._position, "batch_size": self._batch_size}
        return {**self._identity(), **counts}

    def _identity(self) -> dict[str, Any]:
        split = {"turns": self._num_workers, "world_size": self._rank.world_size}
        return {**self._dataset.identity(), **split}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`.

        Raises:
            AvdataError: The state is of another stream, or of another number of workers or ranks. Of another
                batch size: the next sample raises.
        """
        check_state(state, self._identity(), ("epoch", "given", "batch_size"), RESUME_HINT)
        self._dataset.resume_pass(int(state["epoch"]))
        self._start(int(state["epoch"]), int(state["given"]), max(int(state["batch_size"]), 1))


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
            msg = f"State mismatch: {name} is {expected!r}, the state has {shorten(repr(state.get(name)))}."
            raise AvdataError(msg, hint=hint)
    for name in counts:
        if not is_integer(state.get(name)) or state[name] < 0:
            msg = (
                f"Invalid state: {name} is {shorten(repr(state.get(name)))}, expected a non-negative integer."
            )
            raise AvdataError(msg, hint="Load what `state_dict` returned, complete")
