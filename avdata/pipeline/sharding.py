"""Assignment of valid clips to shards, in compressed form.

The clips of a plan stay in memory until the dataset is finished. A clip takes 1.5 kB as objects, mostly its
paths, and about 0.1 kB compressed.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from avdata.clips import ClipList
from avdata.pipeline.validation import ValidClip
from avdata.recipe import Clip
from avdata.selection import hash_order
from avdata.shards.format import shard_name

SPLITS = ("train", "val", "test")


class PackedClips(Sequence[ValidClip]):
    """Clips of a shard. They are compressed, and unpacked for each iteration."""

    def __init__(self, clips: Sequence[ValidClip]) -> None:
        self._count = len(clips)
        # Read only by this process and its workers.
        self._data = zlib.compress(pickle.dumps(tuple(clips), pickle.HIGHEST_PROTOCOL), 1)

    def _unpack(self) -> tuple[ValidClip, ...]:
        clips: tuple[ValidClip, ...] = pickle.loads(zlib.decompress(self._data))  # noqa: S301  # our own
        return clips

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ValidClip]:
        return iter(self._unpack())

    @overload
    def __getitem__(self, number: int) -> ValidClip: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[ValidClip, ...]: ...

    def __getitem__(self, number: int | slice) -> ValidClip | tuple[ValidClip, ...]:
        return self._unpack()[number]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def sort_for_shards(clips: Iterable[Clip], seed: int) -> ClipList:
    """Return the clips in the order of the shards: by split, then shuffled by the seed."""
    clips, keys = ClipList.of(clips), bytearray()
    for clip in clips:  # as a sort by split and `hash_order`, in 136 bits of each clip
        keys += bytes([SPLITS.index(clip.split)]) + bytes.fromhex(hash_order(clip.key, seed)[:32])
    return clips.take(np.argsort(np.frombuffer(keys, "S17"), kind="stable").tolist())


def assign_shards(
    dataset: str, candidates: Iterable[ValidClip], size: int
) -> tuple[tuple[str, PackedClips], ...]:
    """Return the path of each shard with its clips.

    Args:
        dataset: name of the dataset.
        candidates: clips in the order of `sort_for_shards`; each is released when its shard is packed.
        size: samples per shard.
    """
    packed: dict[str, list[PackedClips]] = {split: [] for split in SPLITS}
    pending: list[ValidClip] = []
    for candidate in candidates:
        if len(pending) == size or (pending and pending[0].clip.split != candidate.clip.split):
            packed[pending[0].clip.split].append(PackedClips(pending))
            pending = []
        pending.append(candidate)
    if pending:
        packed[pending[0].clip.split].append(PackedClips(pending))
    return tuple(
        (shard_name(dataset, split, number, len(shards)), clips)
        for split, shards in packed.items()
        for number, clips in enumerate(shards)
    )
