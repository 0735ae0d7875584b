"""Open the splits of a prepared dataset, local or remote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from avdata.errors import UsageError
from avdata.streaming.collate import mel_normalization, stores_strips
from avdata.streaming.dataset import AVDataset
from avdata.streaming.epochs import is_integer
from avdata.streaming.frames_format import FramesFormat
from avdata.streaming.parts import check_distinct, open_reader
from avdata.streaming.sample_reader import SampleReader
from avdata.streaming.sampling import ShuffleConfig, default_block
from avdata.streaming.shard_cache import DEFAULT_LIMIT_BYTES, ShardCache
from avdata.streaming.split_index import Condition, Weights, read_shape, read_split_index
from avdata.streaming.transforms import SampleTransform, check_transform


def open_dataset(
    dataset: str | Path | Sequence[str | Path],
    split: str = "train",
    *,
    shuffle: bool = False,
    seed: int = 0,
    normalize: bool = True,
    waveform: bool = False,
    modalities: Sequence[str] | None = None,
    frames_dtype: torch.dtype = torch.uint8,
    frames_layout: Literal["BTCHW", "channels_last"] | None = None,
    transform: SampleTransform | None = None,
    filter: Condition | None = None,
    weights: Weights | None = None,
    epoch_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    as_dict: bool = False,
    canonical_nodes: int | None = None,
    block: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    cache: str | Path | None = None,
    cache_bytes: int = DEFAULT_LIMIT_BYTES,
    verify_shards: bool | None = None,
) -> AVDataset:
    """Open one split of a prepared dataset, a part of one, or several.

    Args:
        dataset: Folder or URL of the dataset (`https://`, `s3://`, `gs://`, `hf://datasets/user/name`, ...).
            A list of them, or a pattern such as `s3://bucket/parts/*`, is read as one dataset: the parts of
            `prepare --part`, or datasets of different clips that one recipe and config prepared.
        split: Name of the split: train, val (or validation) or test; a slice in the order of the index, such
            as `train[:10%]`, `train[100:200]` or `train[-50:]`; or several of them, such as `train+val`.
        shuffle: Use a new order each epoch; see `AVDataset.set_epoch`.
        seed: Seed of the order and of the generators of transforms.
        normalize: Normalize each mel band by the mean and standard deviation of the train split.
        waveform: Decode the stored waveforms as `AVSample.waveform` and `AVBatch.waveform`, for datasets
            prepared with `--set audio.flac=true`.
        modalities: What to read and decode: `("audio",)`, `("video",)` or both (default: all that the dataset
            has). The mel or the frames of samples and batches are None if they are not read.
        frames_dtype: `torch.uint8` as stored; or float32, float16 or bfloat16 with values in [0, 1].
        frames_layout: Memory layout of the frames; their shape is always [B, T, C, H, W]. `BTCHW`:
            contiguous. `channels_last`: torch's memory format of each frame. By default, the order in
            storage, which needs no further copy.
        transform: Function `(sample, generator) -> sample` that is called with each `AVSample` after
            decoding. `generator` is a `torch.Generator` seeded by seed, epoch and key: its numbers do not
            depend on workers, ranks or resumes. The function returns an `AVSample`, or what `collate_fn`
            accepts. The threads of `AVDataset.loader` call it concurrently.
        filter: Condition on the columns of the index that selects samples; see `AVDataset.filter`.
        weights: Relative frequency of the samples: one number per sample, in the order of the index after the
            filter; or a column of the index, such as `label`, whose values are sampled equally often. The
            epoch length does not change: some samples are repeated, others are left out.
        epoch_size: Number of samples of an epoch over all ranks (default: each sample once). The next epoch
            continues where the last one ended.
        on_error: Handling of unreadable samples. `raise` raises the error. `skip` gives the position in the
            batch weight 0 and appends the error to `AVLoader.skipped`; iteration by sample, also in torch's
            `DataLoader`, substitutes another sample with weight 0 and the error in `metadata["skipped"]`.
            An unreachable storage always raises.
        as_dict: Return samples and batches as dicts; see `AVSample.as_dict` and `AVBatch.as_dict`. Trainers
            that collate dicts, such as that of transformers, then need no `collate_fn`.
        canonical_nodes: Number of spans that are read in parallel. Samples of one span seldom share a small
            batch. Choose a multiple of the number of machines, so that each machine reads only some of the
            shards (default: 8 for a remote dataset with shuffling, else 1).
        block: Number of samples of a span that are shuffled together (default: 131,072 over all spans, and
            16,384 of a span at least).
        rank: Rank of this process. By default, looked up when an iteration starts: from torch.distributed,
            else from the variables of torchrun, Lightning, MPI or Slurm.
        world_size: Number of processes (default: as for `rank`).
        cache: Folder for the shards of a remote dataset (default: below `AVDATA_CACHE`).
        cache_bytes: Size limit of that folder in bytes.
        verify_shards: Compare the SHA-256 of each shard with dataset.json when this process first reads it
            (default: only shards that were in the cache; a damaged one is fetched again).

    Returns:
        The samples as an iterable dataset with random access, a loader and a map-style view.

    Raises:
        AvdataError: `dataset` is not a prepared dataset, or is not reachable.
        UsageError: Unknown split, invalid filter, weights, URL or option, or no stored waveforms.
    """
    if on_error not in {"raise", "skip"}:
        msg = f"Invalid on_error={on_error!r}: must be 'raise' or 'skip'."
        raise UsageError(msg)
    if transform is not None:
        check_transform("transform", transform)
    frames_format = FramesFormat(frames_dtype, frames_layout)
    reader, info, parts = open_reader(dataset, split, ShardCache(cache, cache_bytes), verify=verify_shards)
    nodes = canonical_nodes or (ShuffleConfig.canonical_nodes if shuffle and reader.remote else 1)
    for name, number, least in (
        ("seed", seed, 0), ("canonical_nodes", nodes, 1), ("block", 1 if block is None else block, 1),
        ("epoch_size", 1 if epoch_size is None else epoch_size, 1),
    ):  # fmt: skip
        if not is_integer(number) or number < least:
            msg = f"Invalid {name}={number!r}: must be an integer of at least {least}."
            raise UsageError(msg)
    index = read_split_index(reader, parts, filter, info)
    check_distinct(reader, index)
    shape = read_shape(reader, info, waveform=waveform, modalities=modalities)
    stats = info["mel_stats"] if normalize and shape.has_mel else None
    samples = SampleReader(
        reader, index, info, [part.name for part in parts], shape, is_strip=stores_strips(info),
        frames_format=frames_format, normalization=None if stats is None else mel_normalization(stats, shape),
    )  # fmt: skip
    block = default_block(nodes) if block is None else block
    order = ShuffleConfig(seed=seed, shuffle=shuffle, canonical_nodes=nodes, block=block)
    return AVDataset(
        samples, "+".join(map(str, parts)), order=order, transform=transform, filter=filter, weights=weights,
        epoch_size=epoch_size, on_error=on_error, as_dict=as_dict, rank=rank, world_size=world_size,
    )  # fmt: skip
