"""Loader of one rank's batches: assembled in advance by threads, with a resumable state."""

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
    """Loader that yields the batches of one epoch per pass and resumes from a state.

        state = loader.state_dict()
        loader.load_state_dict(state)  # later, on any number of ranks

    After a complete pass, the next one uses the next epoch, unless `set_epoch` sets another. An interrupted
    pass starts again from its beginning, unless its state is loaded.

    Attributes:
        dataset: The dataset that the loader reads.
        batch_size: Samples per batch.
        skipped: Errors of samples that were skipped, as messages that name shard and key.
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
            msg = f"Invalid batch_size={batch_size} or num_workers={num_workers}: must be at least 1 and 0."
            raise UsageError(msg)
        self.dataset, self.batch_size = dataset, batch_size
        self.num_workers, self.drop_last = num_workers, drop_last
        # As in torch's DataLoader, ignored without CUDA.
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.skipped: list[str] = []
        self._seen = 0
        self._resume = 0
        # The epoch of `_seen`. The dataset's epoch also advances when another loader of it ends a pass.
        self._epoch = dataset.epoch
        shape, buffers = dataset.shape, num_workers + 3
        self._mel = BufferPool((batch_size, *shape.mel), np.float32, keep=buffers)
        layout, waveform = shape.layout(strip=dataset.is_strip), shape.waveform
        self._frames = BufferPool((batch_size, *layout), np.uint8, keep=buffers) if layout else None
        self._waveform = BufferPool((batch_size, *waveform), np.float32, keep=buffers) if waveform else None

    def __repr__(self) -> str:
        return f"AVLoader({self.dataset!r}, batch_size={self.batch_size})"

    def __len__(self) -> int:
        return self._batches(0)

    def _batches(self, seen: int) -> int:
        return remaining_batches(
            len(self.dataset), seen=seen, batch_size=self.batch_size, world=self.dataset.world_size,
            drop_last=self.drop_last,
        )  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; a loaded state of the same epoch stays in effect."""
        # After its last batch a pass is complete, even if the iterator was not exhausted.
        if epoch != self._current() or self._batches(self._seen) == 0:
            self._seen = self._resume = 0
        self.dataset.set_epoch(epoch)

    def _current(self) -> int:
        return self._epoch if self._seen else self.dataset.epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the number of samples yielded over all ranks, and the identity of the stream."""
        return {"version": 1, "epoch": self._current(), "samples": self._seen, **self.dataset.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`, also with another batch size or number of ranks.

        Raises:
            AvdataError: The state is of another dataset, split, filter or order.
        """
        current = self.state_dict()
        for name in set(current) - {"epoch", "samples"}:
            if state.get(name) != current[name]:
                msg = f"State mismatch: {name} is {current[name]!r}, the state has {state.get(name)!r}."
                hint = "open the same dataset with the same split, filter, weights, seed and order"
                raise AvdataError(msg, hint=hint)
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
            # The pass yielded its last batch, but the iterator was not exhausted.
            self._end_epoch()
        start, self._resume = self._resume, 0
        if start:
            self.dataset.set_epoch(self._epoch)
        self._seen, self._epoch = start, self.dataset.epoch
        data, step = self.dataset, self.batch_size * self.dataset.world_size
        order, count = data.epoch_order(), self._batches(start)

        own = order[start:][(data.plan_rank - start) % data.world_size :: data.world_size]
        prefetcher = ShardPrefetcher(data.first_uses(own), data.prefetch)

        def indices(number: int) -> tuple[np.ndarray, np.ndarray]:
            prefetcher.advance_to((number + 1) * self.batch_size)
            positions, weight = batch_indices(
                len(data), number, seen=start, batch_size=self.batch_size,
                rank=data.plan_rank, world=data.world_size,
            )  # fmt: skip
            return order[positions], weight

        try:
            for batch in self._batches_ahead(indices, count):
                # Count only yielded batches, not those that threads have assembled in advance.
                self._seen += step
                yield batch
        finally:
            prefetcher.close()
        if count:
            self._end_epoch()

    def _batches_ahead(
        self, indices: Callable[[int], tuple[np.ndarray, np.ndarray]], count: int
    ) -> Iterator[AVBatch]:
        if self.num_workers == 0:
            for number in range(count):
                yield self._batch(*indices(number))
            return
        pending: deque[Future[AVBatch]] = deque()

        def batch(number: int) -> AVBatch:
            return self._batch(*indices(number))

        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="avdata")
        try:
            for number in range(count):
                pending.append(pool.submit(batch, number))
                if len(pending) > self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, numbers: np.ndarray, weight: np.ndarray) -> AVBatch:
        data = self.dataset
        mel, keys = self._mel.tensor(), data.keys_of(numbers)
        frames = None if self._frames is None else self._frames.tensor()
        waveform = None if self._waveform is None else self._waveform.tensor()
        metadata = self._fill(numbers, keys, mel, frames, waveform)
        unreadable = [position for position, sample in enumerate(metadata) if sample is None]
        readable = next((position for position, sample in enumerate(metadata) if sample is not None), None)
        for position in unreadable:
            for tensor in (mel, frames, waveform):
                if tensor is not None:
                    tensor[position] = 0 if readable is None else tensor[readable]
            weight[position] = 0
        batch = AVBatch(
            mel=mel.unsqueeze(2),
            frames=data.shape.tensor(frames, strip=data.is_strip),
            label=torch.from_numpy(data.label_of(numbers)),
            key=keys,
            weight=torch.from_numpy(weight),
            present=torch.from_numpy(data.present_of(numbers)),
            step_labels=None if readable is None else _step_labels(metadata, metadata[readable]),
            waveform=waveform,
            sample_rate=data.shape.sample_rate,
        )
        return batch.pin_memory() if self.pin_memory else batch

    def _fill(
        self,
        numbers: np.ndarray,
        keys: list[str],
        mel: torch.Tensor,
        frames: torch.Tensor | None,
        waveform: torch.Tensor | None,
    ) -> list[dict[str, Any] | None]:
        """Read samples into the batch; return the JSON of each, None for unreadable ones."""
        data = self.dataset
        metadata: list[dict[str, Any] | None] = []
        mels, assembler = mel.unbind(), BatchAssembler(at_once=self.num_workers < 2)
        clips = [None] * len(numbers) if frames is None else frames.unbind()
        waveforms = [None] * len(numbers) if waveform is None else waveform.unbind()
        for position, number in enumerate(numbers.tolist()):
            try:
                sample = data.fill(
                    number, mels[position], clips[position], assembler,
                    waveform=waveforms[position], key=keys[position],
                )  # fmt: skip
                metadata.append(sample)
            except AvdataError as error:
                if data.on_error == "raise" or isinstance(error, UnavailableError):
                    raise
                self.skipped.append(error.message)
                _log.warning("skipped: %s", error.message)
                metadata.append(None)
        assembler.flush()
        return metadata


def _step_labels(
    metadata: list[dict[str, Any] | None], readable: dict[str, Any] | None
) -> torch.Tensor | None:
    if not readable or "step_labels" not in readable:
        return None
    labels = [(sample or {}).get("step_labels") for sample in metadata]
    return torch.tensor([readable["step_labels"] if steps is None else steps for steps in labels])
