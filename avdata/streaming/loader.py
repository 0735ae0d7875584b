"""Loader of one rank's batches: assembled in advance by threads, with a resumable state."""

from __future__ import annotations

import atexit
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from avdata.errors import AvdataError, UnavailableError, UsageError
from avdata.interrupts import Terminated, wait_for
from avdata.storage.live_objects import LiveObjects
from avdata.storage.remote_files import cancel_reads
from avdata.streaming.batch import AVBatch, as_dict
from avdata.streaming.buffer_pool import BufferPool
from avdata.streaming.collate import BatchAssembler
from avdata.streaming.distributed import is_divided_by_wrapper
from avdata.streaming.epochs import is_integer
from avdata.streaming.iterator import check_state
from avdata.streaming.prefetch import ShardPrefetcher
from avdata.streaming.protocols import StreamSource
from avdata.streaming.sampling import batch_indices, remaining_batches
from avdata.streaming.torch_loader import BatchDataLoader
from avdata.streaming.transforms import (
    BatchTransform,
    SampleBatches,
    apply_transform,
    check_transform,
    keyed_generator,
    log_skipped,
    occurrences,
)

_passes: LiveObjects[Generator[AVBatch, None, None]] = LiveObjects()
"""Passes that have begun."""


@atexit.register
def _close_passes() -> None:
    # Later, their threads cannot be stopped: the interpreter clears modules before it deletes generators.
    for batches in list(_passes):
        with suppress(ValueError):  # another thread is running it
            batches.close()


class AVLoader(IterableDataset[AVBatch]):
    """Loader that yields the batches of one epoch per pass and resumes from a state.

        state = loader.state_dict()
        loader.load_state_dict(state)  # later, on any number of ranks

    Every pass is a new epoch, also after an interrupted one, unless a state is loaded or `set_epoch` sets the
    epoch. An epoch ends when its last batch is handed out. In a worker process of torch's `DataLoader`, a
    pass yields that worker's share of the batches and has no state.

    To torch, the loader is an iterable dataset of batches. Frameworks that accept only torch's `DataLoader`,
    such as `Fabric.setup_dataloaders` and `accelerate.skip_first_batches`, take `as_dataloader()`.

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
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_transform: BatchTransform | None = None,
    ) -> None:
        for name, number, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not is_integer(number) or number < least:
                msg = f"Invalid {name}={number!r}: must be an integer of at least {least}."
                raise UsageError(msg)
        self.dataset, self.batch_size = dataset, int(batch_size)
        self.num_workers, self.drop_last = int(num_workers), drop_last
        # As in torch's DataLoader, ignored without CUDA.
        self.pin_memory = pin_memory and torch.cuda.is_available()
        if batch_transform is not None:
            check_transform("batch_transform", batch_transform)
        self.batch_transform = batch_transform
        is_by_sample = collate_fn is not None or dataset.has_transform
        self._samples = SampleBatches(dataset, collate_fn) if is_by_sample else None
        self.skipped: list[str] = []
        # (epoch, samples of all ranks that were handed out): of the current pass, and to resume from.
        self._position: tuple[int, int] | None = None
        self._resume: tuple[int, int] | None = None
        self._pools: _Pools | None = None

    def __repr__(self) -> str:
        return f"AVLoader({self.dataset!r}, batch_size={self.batch_size})"

    def __len__(self) -> int:
        return self._count(0, self.dataset.rank_info().world_size)

    def _count(self, seen: int, world: int) -> int:
        return remaining_batches(
            self.dataset.num_samples, seen=seen, batch_size=self.batch_size, world=world,
            drop_last=self.drop_last,
        )  # fmt: skip

    def as_dataloader(self) -> BatchDataLoader:
        """Return these batches as a torch `DataLoader` with the position and state of this loader."""
        return BatchDataLoader(self)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; a loaded state of the same epoch stays in effect."""
        if self._resume is None or self._resume[0] != epoch:
            self._position = self._resume = None
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the number of samples yielded over all ranks, and the identity of the stream.

        Raises:
            UsageError: A worker process of torch's `DataLoader` calls it.
        """
        _refuse_in_worker()
        epoch, samples = self._position or (self.dataset.epoch, 0)
        return {**self._identity(), "epoch": epoch, "samples": samples}

    def _identity(self) -> dict[str, Any]:
        return {"version": 1, **self.dataset.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`, also with another batch size or number of ranks.

        Raises:
            AvdataError: The state is of another dataset, split, filter or order, or incomplete.
            UsageError: A worker process of torch's `DataLoader` calls it.
        """
        _refuse_in_worker()
        hint = "Open the same dataset with the same split, filter, weights, seed and order"
        check_state(state, self._identity(), ("epoch", "samples"), hint)
        epoch, samples = int(state["epoch"]), int(state["samples"])
        if samples >= self.dataset.num_samples > 0:
            epoch, samples = epoch + 1, 0
        self._position = self._resume = (epoch, samples)
        self.dataset.set_epoch(epoch)

    def _begin(self, world: int) -> tuple[int, int]:
        """Begin a pass; return its epoch and the number of samples handed out before."""
        resume, self._resume = self._resume, None
        if resume is None:
            return self.dataset.begin_pass(), 0
        epoch, seen = resume
        if seen and self._count(seen, world) == 0:
            # The rest of that epoch is less than a batch, which `drop_last` drops.
            epoch, seen = epoch + 1, 0
        self.dataset.resume_pass(epoch)
        return epoch, seen

    def __iter__(self) -> Iterator[AVBatch]:
        batches = self._pass()
        _passes.add(batches)
        return batches

    def _pass(self) -> Generator[AVBatch, None, None]:
        if is_divided_by_wrapper():
            msg = "Cannot divide the batches of AVLoader again: each process already reads its own part."
            hint = "Pass the loader, or its as_dataloader(), to accelerator.prepare"
            raise UsageError(msg, hint=hint)
        data, place, worker = self.dataset, self.dataset.rank_info(), get_worker_info()
        rank, world = place.plan_rank, place.world_size
        epoch, start = self._begin(world)
        # Another pass, or a state that is loaded meanwhile, replaces this object.
        position = self._position = (epoch, start)
        order, count = data.order_of(epoch), self._count(start, world)
        numbers = range(count) if worker is None else range(worker.id, count, worker.num_workers)

        own = order[start:][(rank - start) % world :: world]
        prefetcher = ShardPrefetcher(data.first_uses(own), data.prefetch)

        occurrence = occurrences(order) if data.has_transform else np.zeros(len(order), np.int64)

        def assemble(number: int) -> Any:
            prefetcher.advance_to((number + 1) * self.batch_size)
            positions, weight = batch_indices(
                data.num_samples, number, seen=start, batch_size=self.batch_size, rank=rank, world=world,
            )  # fmt: skip
            return self._batch(order[positions], weight, occurrence[positions], epoch)

        try:
            for number, batch in zip(numbers, self._batches_ahead(assemble, numbers), strict=True):
                # Count only yielded batches, not those that threads have assembled in advance.
                is_last = number == numbers[-1]
                if is_last:
                    data.end_pass(epoch)
                if self._position is position:
                    seen = start + (number + 1) * self.batch_size * world
                    position = self._position = (epoch + 1, 0) if is_last else (epoch, seen)
                yield batch
        except (KeyboardInterrupt, Terminated):
            prefetcher.close()
            cancel_reads()
            raise
        finally:
            prefetcher.close()

    def _batches_ahead(self, assemble: Callable[[int], Any], numbers: range) -> Iterator[Any]:
        if self._pools is None:
            self._pools = _Pools(self.dataset, self.batch_size, keep=self.num_workers + 3)
        if self.num_workers == 0:
            for number in numbers:
                yield assemble(number)
            return
        pending: deque[Future[Any]] = deque()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="avdata")
        try:
            for number in numbers:
                pending.append(pool.submit(assemble, number))
                if len(pending) > self.num_workers:
                    yield wait_for(pending.popleft())
            while pending:
                yield wait_for(pending.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, numbers: np.ndarray, weight: np.ndarray, occurrence: np.ndarray, epoch: int) -> Any:
        data = self.dataset
        if self._samples is None:
            batch: Any = self._assembled(numbers, weight)
        else:
            batch = self._samples.batch(numbers, weight, occurrence, epoch, self._skip)
        batch = as_dict(batch) if data.as_dict else batch
        if self.batch_transform is not None:
            keys = data.keys_of(numbers)
            generator = keyed_generator(data.order.seed, epoch, keys)
            batch = apply_transform(self.batch_transform, batch, generator, f"the batch of {keys[0]}")
        return pin_memory(batch) if self.pin_memory else batch

    def _skip(self, error: AvdataError) -> None:
        self.skipped.append(error.message)
        log_skipped(error)

    def _assembled(self, numbers: np.ndarray, weight: np.ndarray) -> AVBatch:
        data = self.dataset
        assert self._pools is not None
        (mel, frames, waveform), keys = self._pools.tensors(), data.keys_of(numbers)
        metadata = self._fill(numbers, keys, mel, frames, waveform)
        unreadable = [position for position, sample in enumerate(metadata) if sample is None]
        readable = next((position for position, sample in enumerate(metadata) if sample is not None), None)
        for position in unreadable:
            for tensor in (mel, frames, waveform):
                if tensor is not None:
                    tensor[position] = 0 if readable is None else tensor[readable]
            weight[position] = 0
        return AVBatch(
            mel=None if mel is None else mel.unsqueeze(2),
            frames=data.frames_format.convert(
                data.shape.tensor(frames, strip=data.is_strip), self._pools.converted_frames()
            ),
            label=torch.from_numpy(data.label_of(numbers)),
            key=keys,
            weight=torch.from_numpy(weight),
            present=torch.from_numpy(data.present_of(numbers)),
            step_labels=None if readable is None else _step_labels(metadata, metadata[readable]),
            waveform=waveform,
            sample_rate=data.shape.sample_rate,
        )

    def _fill(
        self,
        numbers: np.ndarray,
        keys: list[str],
        mel: torch.Tensor | None,
        frames: torch.Tensor | None,
        waveform: torch.Tensor | None,
    ) -> list[dict[str, Any] | None]:
        """Read samples into the batch; return the JSON of each, None for unreadable ones."""
        data = self.dataset
        metadata: list[dict[str, Any] | None] = []
        assembler = BatchAssembler(at_once=self.num_workers < 2)
        mels, clips, waveforms = (
            [None] * len(numbers) if tensor is None else tensor.unbind() for tensor in (mel, frames, waveform)
        )
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
                self._skip(error)
                metadata.append(None)
        assembler.flush()
        return metadata

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pools": None}


class _Pools:
    """Buffers of the batches of one loader, allocated when it is first iterated."""

    def __init__(self, dataset: StreamSource, batch_size: int, *, keep: int) -> None:
        shape = dataset.shape
        self._mel = BufferPool((batch_size, *shape.mel), np.float32, keep=keep) if shape.has_mel else None
        layout, waveform = shape.layout(strip=dataset.is_strip), shape.waveform
        self._frames = BufferPool((batch_size, *layout), np.uint8, keep=keep) if layout else None
        format = dataset.frames_format
        size = batch_size * math.prod(layout or ()) * format.dtype.itemsize
        is_converted = layout is not None and not format.is_stored
        self._converted = BufferPool((size,), np.uint8, keep=keep) if is_converted else None
        self._waveform = BufferPool((batch_size, *waveform), np.float32, keep=keep) if waveform else None

    def tensors(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return buffers for the mels, frames and waveforms of a batch."""
        mel, frames, waveform = (
            None if pool is None else pool.tensor() for pool in (self._mel, self._frames, self._waveform)
        )
        return mel, frames, waveform

    def converted_frames(self) -> torch.Tensor | None:
        """Return a buffer for the converted frames of a batch, uint8 [bytes]; None if they stay as stored."""
        return None if self._converted is None else self._converted.tensor()


def _refuse_in_worker() -> None:
    if get_worker_info() is not None:
        msg = "AVLoader has no state in a worker of torch's DataLoader, which reads a part of the batches."
        raise UsageError(msg, hint="Use the loader in the main process; its workers are threads")


def _step_labels(
    metadata: list[dict[str, Any] | None], readable: dict[str, Any] | None
) -> torch.Tensor | None:
    if not readable or "step_labels" not in readable:
        return None
    labels = [(sample or {}).get("step_labels") for sample in metadata]
    return torch.tensor([readable["step_labels"] if steps is None else steps for steps in labels])
