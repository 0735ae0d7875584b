"""Prepared sets as batches: an iterable dataset that follows a plan, and the loader that feeds a training.

Shards are mapped into memory and read through the index, by threads of this process: ready-made arrays need
no worker processes, which would only copy them.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from avdata.config import nearest
from avdata.errors import AvdataError, UsageError
from avdata.plan import batches_of, epoch_order, rank_batches
from avdata.shards import decode_frames, decode_mel, read_index, read_info, read_members


@dataclass(frozen=True, slots=True)
class AVSample:
    """One sample: mel float32 [T, 1, F, L], frames uint8 [T, C, H, W], label, key, its JSON."""

    mel: torch.Tensor
    frames: torch.Tensor
    label: int
    key: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AVBatch:
    """A batch of samples.

    Attributes:
        mel: float32 [B, T, 1, F, L], normalised by the train split's statistics unless asked otherwise.
        frames: uint8 [B, T, C, H, W].
        label: int64 [B].
        key: B keys.
        weight: float32 [B]; 0 marks padding, which no loss and no metric may count.
        step_labels: int64 [B, T] where the dataset labels its steps, else None.
    """

    mel: torch.Tensor
    frames: torch.Tensor
    label: torch.Tensor
    key: list[str]
    weight: torch.Tensor
    step_labels: torch.Tensor | None


def open_dataset(
    where: str | Path,
    split: str = "train",
    *,
    shuffle: bool = False,
    seed: int = 0,
    normalize: bool = True,
    rank: int | None = None,
    world_size: int | None = None,
) -> AVDataset:
    """Open one split of a prepared set.

    Args:
        where: the set's folder.
        split: train, val or test.
        shuffle: a new order each epoch; see `AVDataset.set_epoch`.
        seed: of the order.
        normalize: subtract the train split's mean from each mel band and divide by its deviation.
        rank: which part of the work this process has; None asks torch.distributed, then the environment.
        world_size: how many processes share the work; likewise.

    Raises:
        AvdataError: the folder is not a prepared set, or a shard is missing.
        UsageError: the set has no such split.
    """
    root = Path(where)
    info = read_info(root)
    if split not in info["splits"]:
        msg = f"{root} has no split {split!r}"
        raise UsageError(msg, hint=nearest(split, list(info["splits"])))
    place = _world()
    return AVDataset(
        root, split, info, shuffle=shuffle, seed=seed, normalize=normalize,
        rank=place[0] if rank is None else rank, world_size=place[1] if world_size is None else world_size,
    )  # fmt: skip


def _world() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class AVDataset(IterableDataset[AVSample]):
    """One split of a prepared set: iterate it, index it, find a sample by key, or take its loader."""

    def __init__(
        self,
        root: Path,
        split: str,
        info: Mapping[str, Any],
        *,
        shuffle: bool,
        seed: int,
        normalize: bool,
        rank: int,
        world_size: int,
    ) -> None:
        import pyarrow.compute as pc  # noqa: PLC0415

        index = read_index(root)
        index = index.filter(pc.equal(index["split"], split))
        self.root, self.split, self.info = root, split, info
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.rank, self.world_size = rank, world_size
        self.keys: list[str] = index["key"].to_pylist()
        self.labels: list[str] = list(info["labels"])
        self._label = index["label"].to_numpy()
        self._offset, self._nbytes = index["offset"].to_numpy(), index["nbytes"].to_numpy()
        self._shard: list[str] = index["shard"].to_pylist()
        self._maps: dict[str, mmap.mmap] = {}
        stats = info["mel_stats"] if normalize else None
        self._mean = None if stats is None else np.array(stats["mean"], np.float32)[:, None]
        self._scale = (
            None if stats is None else 1 / np.maximum(np.array(stats["std"], np.float32), 1e-5)[:, None]
        )

    def __len__(self) -> int:
        return len(self.keys)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order together with the seed."""
        self.epoch = epoch

    def find(self, key: str) -> AVSample:
        """The sample of a key.

        Raises:
            UsageError: the split has no such key.
        """
        if key not in self.keys:
            msg = f"split {self.split} of {self.root} has no sample {key!r}"
            raise UsageError(msg)
        return self[self.keys.index(key)]

    def __getitem__(self, number: int) -> AVSample:
        mel, frames, facts = self.arrays(number)
        return AVSample(
            mel=torch.from_numpy(mel), frames=torch.from_numpy(frames), label=int(self._label[number]),
            key=self.keys[number], facts=facts,
        )  # fmt: skip

    def arrays(self, number: int) -> tuple[np.ndarray, np.ndarray, Mapping[str, Any]]:
        """Sample `number` as mel float32 [T, 1, F, L], frames uint8 [T, C, H, W], and its JSON.

        Raises:
            AvdataError: its bytes cannot be read; the message names shard and key.
        """
        shard, offset = self._shard[number], int(self._offset[number])
        try:
            members = read_members(memoryview(self._map(shard))[offset : offset + int(self._nbytes[number])])
            mel = decode_mel(members).astype(np.float32)
            frames = decode_frames(members, mel.shape[0]).transpose(0, 3, 1, 2)
            facts = json.loads(bytes(members["json"]))
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            msg = f"sample {self.keys[number]} in {shard} cannot be read: {error}"
            raise AvdataError(msg, hint=f"avdata verify {self.root} lists all that is wrong") from error
        if self._mean is not None and self._scale is not None:
            mel = ((mel - self._mean) * self._scale).astype(np.float32)
        return mel[:, None], np.ascontiguousarray(frames), facts

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            path = self.root / shard
            try:
                with path.open("rb") as stream:
                    self._maps[shard] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                msg = f"the shard {path} cannot be opened ({error})"
                raise AvdataError(msg, hint=f"avdata verify {self.root} lists all that is wrong") from error
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def __iter__(self) -> Iterator[AVSample]:
        """This rank's samples in the epoch's order; processes of a torch DataLoader share them out."""
        order = epoch_order(len(self), seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)
        mine = order[self.rank :: self.world_size]
        worker = get_worker_info()
        if worker is not None:
            mine = mine[worker.id :: worker.num_workers]
        for number in mine:
            yield self[int(number)]

    def loader(self, batch_size: int, *, num_workers: int = 2, drop_last: bool = False) -> Loader:
        """Batches of this rank, made ahead by `num_workers` threads; 0 makes each when it is asked for."""
        return Loader(self, batch_size, num_workers=num_workers, drop_last=drop_last)


class Loader:
    """Iterates one epoch of batches; knows how far it has come, and goes on from there.

    >>> # state = loader.state_dict(); later: loader.load_state_dict(state)
    """

    def __init__(self, dataset: AVDataset, batch_size: int, *, num_workers: int, drop_last: bool) -> None:
        if batch_size < 1 or num_workers < 0:
            msg = f"batch_size={batch_size}, num_workers={num_workers}: at least 1 and 0 are needed"
            raise UsageError(msg)
        self.dataset, self.batch_size = dataset, batch_size
        self.num_workers, self.drop_last = num_workers, drop_last
        self._delivered = 0

    def __len__(self) -> int:
        return batches_of(
            len(self.dataset),
            batch_size=self.batch_size,
            world=self.dataset.world_size,
            drop_last=self.drop_last,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, from its beginning."""
        self.dataset.set_epoch(epoch)
        self._delivered = 0

    def state_dict(self) -> dict[str, int]:
        """What was delivered: the epoch, and its samples over all ranks."""
        world = self.dataset.world_size
        return {"epoch": self.dataset.epoch, "samples": self._delivered * self.batch_size * world}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken, also with another number of ranks.

        Raises:
            AvdataError: the samples delivered are not whole batches here.
        """
        batches, left = divmod(state["samples"], self.batch_size * self.dataset.world_size)
        if left:
            msg = f"{state['samples']} samples were delivered: no whole batches of {self.batch_size}"
            raise AvdataError(msg, hint="keep batch size times number of processes as it was")
        self.dataset.set_epoch(state["epoch"])
        self._delivered = batches

    def __iter__(self) -> Iterator[AVBatch]:
        data = self.dataset
        order = epoch_order(len(data), seed=data.seed, epoch=data.epoch, shuffle=data.shuffle)
        picked, weight = rank_batches(
            order, batch_size=self.batch_size, rank=data.rank, world=data.world_size, drop_last=self.drop_last
        )
        start = self._delivered if self._delivered < len(picked) else 0
        self._delivered = start
        jobs = iter(zip(picked[start:], weight[start:], strict=True))
        for batch in self._made(jobs):
            self._delivered += 1
            yield batch

    def _made(self, jobs: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[AVBatch]:
        if self.num_workers == 0:
            yield from (self._batch(*job) for job in jobs)
            return
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="avdata") as pool:
            ahead: deque[Future[AVBatch]] = deque()
            try:
                for job in jobs:
                    ahead.append(pool.submit(self._batch, *job))
                    if len(ahead) > 2 * self.num_workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _batch(self, numbers: np.ndarray, weight: np.ndarray) -> AVBatch:
        data = self.dataset
        made = [data.arrays(int(number)) for number in numbers]
        steps = [facts.get("step_labels") for _, _, facts in made]
        return AVBatch(
            mel=torch.from_numpy(np.stack([mel for mel, _, _ in made])),
            frames=torch.from_numpy(np.stack([frames for _, frames, _ in made])),
            label=torch.from_numpy(data._label[numbers].astype(np.int64)),
            key=[data.keys[number] for number in numbers],
            weight=torch.from_numpy(weight.copy()),
            step_labels=torch.tensor(steps) if steps and all(step is not None for step in steps) else None,
        )
