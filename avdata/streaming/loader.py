"""The loader: one rank's batches of an epoch, made ahead by threads, and the state to go on from."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from avdata.errors import AvdataError, UnavailableError, UsageError
from avdata.streaming.batch import AVBatch
from avdata.streaming.buffer_pool import BufferPool
from avdata.streaming.collate import BatchAssembler
from avdata.streaming.prefetch import ShardPrefetcher
from avdata.streaming.protocols import StreamSource
from avdata.streaming.sampling import batch_indices, remaining_batches

_log = logging.getLogger(__name__)


class AVLoader:
    """Iterates one epoch of batches a time; knows what it has delivered, and goes on from there.

    >>> # state = loader.state_dict(); later, on any number of ranks: loader.load_state_dict(state)

    Each pass is an epoch: after a whole one the next has the next epoch's order, unless `set_epoch` says
    otherwise. A pass that was broken off begins anew, unless its state is loaded.

    Attributes:
        skipped: what could not be read since the loader was made, as messages that name shard and key.
    """

    def __init__(
        self,
        dataset: StreamSource,
        batch_size: int,
        *,
        num_workers: int,
        drop_last: bool,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            msg = f"batch_size={batch_size}, num_workers={num_workers}: at least 1 and 0 are needed"
            raise UsageError(msg)
        self.dataset, self.batch_size = dataset, batch_size
        self.num_workers, self.drop_last = num_workers, drop_last
        # As in torch's own loader, a script for a GPU runs without one.
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.skipped: list[str] = []
        self._seen = 0
        self._resume = 0
        # What `_seen` counts; the dataset's own moves on when another loader of it ends a pass.
        self._epoch = dataset.epoch
        shape, kept = dataset.shape, num_workers + 3
        self._mel = BufferPool((batch_size, *shape.mel), np.float32, keep=kept)
        self._frames = BufferPool((batch_size, *shape.layout(strip=dataset.is_strip)), np.uint8, keep=kept)

    def __len__(self) -> int:
        return self._batches(0)

    def _batches(self, seen: int) -> int:
        return remaining_batches(
            len(self.dataset), seen=seen, batch_size=self.batch_size, world=self.dataset.world_size,
            drop_last=self.drop_last,
        )  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a loaded state of that same epoch stays in force."""
        # A pass that ended with its last batch, and was not asked for more, is over.
        if epoch != self._current() or self._batches(self._seen) == 0:
            self._seen = self._resume = 0
        self.dataset.set_epoch(epoch)

    def _current(self) -> int:
        return self._epoch if self._seen else self.dataset.epoch

    def state_dict(self) -> dict[str, Any]:
        """What was delivered: the epoch and its samples over all ranks, and which order they are of."""
        return {"version": 1, "epoch": self._current(), "samples": self._seen, **self.dataset.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, also with another batch size or number of ranks.

        Raises:
            AvdataError: the state is of another set, split, filter or order.
        """
        here = self.state_dict()
        for name in set(here) - {"epoch", "samples"}:
            if state.get(name) != here[name]:
                msg = f"the state is of another stream: {name} {state.get(name)!r} there, {here[name]!r} here"
                raise AvdataError(msg, hint="open the same set with the same split, filter, seed and order")
        self._epoch = int(state["epoch"])
        self.dataset.set_epoch(self._epoch)
        self._seen = self._resume = int(state["samples"])
        if self._batches(self._seen) == 0 and self._seen:
            self._end_epoch()

    def _end_epoch(self) -> None:
        self.dataset.set_epoch(self._epoch + 1)
        self._seen = self._resume = 0

    def __iter__(self) -> Iterator[AVBatch]:
        if self._seen and self._batches(self._seen) == 0 and self.dataset.epoch == self._epoch:
            # The last batch was taken, and the pass not asked for more.
            self._end_epoch()
        start, self._resume = self._resume, 0
        if start:
            self.dataset.set_epoch(self._epoch)
        self._seen, self._epoch = start, self.dataset.epoch
        data, step = self.dataset, self.batch_size * self.dataset.world_size
        order, count = data.epoch_order(), self._batches(start)

        mine = order[start:][(data.plan_rank - start) % data.world_size :: data.world_size]
        ahead = ShardPrefetcher(data.first_uses(mine), data.prefetch)

        def job(number: int) -> tuple[np.ndarray, np.ndarray]:
            ahead.advance_to((number + 1) * self.batch_size)
            places, weight = batch_indices(
                len(data),
                number,
                seen=start,
                batch_size=self.batch_size,
                rank=data.plan_rank,
                world=data.world_size,
            )
            return order[places], weight

        try:
            for batch in self._batches_ahead(job, count):
                # What is handed out now is delivered, whatever else the threads have made.
                self._seen += step
                yield batch
        finally:
            ahead.close()
        if count:
            self._end_epoch()

    def _batches_ahead(
        self, job: Callable[[int], tuple[np.ndarray, np.ndarray]], count: int
    ) -> Iterator[AVBatch]:
        if self.num_workers == 0:
            for number in range(count):
                yield self._batch(*job(number))
            return
        ahead: deque[Future[AVBatch]] = deque()

        def made(number: int) -> AVBatch:
            return self._batch(*job(number))

        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="avdata")
        try:
            for number in range(count):
                ahead.append(pool.submit(made, number))
                if len(ahead) > self.num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, numbers: np.ndarray, weight: np.ndarray) -> AVBatch:
        data = self.dataset
        mel, frames = self._mel.tensor(), self._frames.tensor()
        mels, pictures, copies = mel.unbind(), frames.unbind(), BatchAssembler(at_once=self.num_workers < 2)
        keys, bad = data.keys_of(numbers), []
        facts: list[dict[str, Any]] = []
        for place, number in enumerate(numbers.tolist()):
            try:
                facts.append(data.fill(number, mels[place], pictures[place], copies, key=keys[place]))
            except AvdataError as error:
                if data.on_error == "raise" or isinstance(error, UnavailableError):
                    raise
                self._skip(error.message)
                facts.append({})
                bad.append(place)
        copies.flush()
        good = next((place for place in range(len(numbers)) if place not in bad), None)
        for place in bad:
            mel[place] = 0 if good is None else mel[good]
            frames[place] = 0 if good is None else frames[good]
            weight[place] = 0
        batch = AVBatch(
            mel=mel.unsqueeze(2),
            frames=data.shape.tensor(frames, strip=data.is_strip),
            label=torch.from_numpy(data.label_of(numbers)),
            key=keys,
            weight=torch.from_numpy(weight),
            present=torch.from_numpy(data.present_of(numbers)),
            step_labels=_step_labels(facts, good),
        )
        return batch.pin_memory() if self.pin_memory else batch

    def _skip(self, message: str) -> None:
        self.skipped.append(message)
        _log.warning("skipped: %s", message)


def _step_labels(facts: list[dict[str, Any]], good: int | None) -> torch.Tensor | None:
    if good is None or "step_labels" not in facts[good]:
        return None
    kept = [fact.get("step_labels") for fact in facts]
    return torch.tensor([kept[good] if labels is None else labels for labels in kept])
