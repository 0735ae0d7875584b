"""Stock `webdataset` pipeline over the shards of a prepared dataset.

Use it to combine a prepared dataset with other webdataset stages. `avdata.open` is faster, shuffles over all
shards and gives every rank the same number of batches; this pipeline assigns complete shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from avdata.errors import AvdataError
from avdata.streaming.batch import AVSample
from avdata.streaming.collate import (
    BatchAssembler,
    MelNormalization,
    SampleShape,
    mel_normalization,
    stores_strips,
)
from avdata.streaming.parts import Shards, check_distinct, open_reader
from avdata.streaming.shard_cache import DEFAULT_LIMIT_BYTES, ShardCache
from avdata.streaming.shard_reader import sample_error
from avdata.streaming.split_index import Condition, read_shape, read_split_index


def webdataset(
    dataset: str | Path | Sequence[str | Path],
    split: str = "train",
    *,
    normalize: bool = True,
    waveform: bool = False,
    filter: Condition | None = None,
    shardshuffle: int | bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    cache_bytes: int = DEFAULT_LIMIT_BYTES,
) -> Any:
    """Return a stock `webdataset` pipeline that yields the samples of a split.

        samples = avdata.webdataset("out/cremad").shuffle(1000)
        loader = torch.utils.data.DataLoader(samples, batch_size=32, collate_fn=avdata.collate, num_workers=2)

    The pipeline assigns complete shards, first to ranks and then to workers. A rank or a worker without a
    shard yields nothing, and ranks may get different numbers of samples. webdataset's own stages limit and
    repeat the samples: `slice(n)`, `repeat(n)` and `with_epoch(n)`.

    Args:
        dataset: Folder or URL of a prepared dataset; see `avdata.open`.
        split: Name of the split: train, val or test; or several and slices, such as `train[:10%]+val`. The
            pipeline reads the shards that contain samples of a slice and drops the others.
        normalize: Normalize each mel band by the statistics of the train split.
        waveform: Decode the stored waveforms; see `avdata.open`.
        filter: Condition on the columns of the index that selects samples; see `AVDataset.filter`.
        shardshuffle: Number of shards in webdataset's shard shuffle buffer; False keeps the order.
        seed: Seed of the shard shuffle.
        cache: Folder for the shards of a remote dataset (default: below `AVDATA_CACHE`).
        cache_bytes: Size limit of that folder in bytes.

    Returns:
        A `webdataset.WebDataset` of `AVSample`, equal to those of `avdata.open(dataset, split)`, in the order
        of the shards.

    Raises:
        AvdataError: `dataset` is not a prepared dataset, is not reachable, or webdataset is not installed.
        UsageError: The dataset has no such split, the filter is invalid, or no waveforms are stored.
    """
    try:
        import webdataset as wds  # noqa: PLC0415
    except ImportError as error:
        msg = "Package 'webdataset' is not installed."
        raise AvdataError(msg, hint="pip install webdataset") from error
    reader, info, parts = open_reader(dataset, split, ShardCache(cache, cache_bytes))
    shape = read_shape(reader, info, waveform=waveform)
    shards = [shard["path"] for part in parts for shard in info["splits"][part.name]["shards"]]
    selected = None
    if filter is not None or any(part.bounds for part in parts):
        index = read_split_index(reader, parts, filter, info)
        check_distinct(reader, index)
        # webdataset refuses an empty list.
        shards, selected = index.shards or shards[:1], frozenset(index.keys)
    pipeline = wds.WebDataset(
        shards, shardshuffle=shardshuffle, detshuffle=bool(shardshuffle), seed=seed, empty_check=False,
        nodesplitter=wds.split_by_node, workersplitter=_LocalShards(reader),
    )  # fmt: skip
    if selected is not None:
        pipeline = pipeline.select(_IsSelected(selected))
    return pipeline.map(_Decoder(info, reader.name, shape, normalize=normalize))


class _IsSelected:
    """Function from webdataset's dictionary to whether its sample is in a slice and meets the filter."""

    def __init__(self, keys: frozenset[str]) -> None:
        self._keys = keys

    def __call__(self, sample: Mapping[str, Any]) -> bool:
        return sample["__key__"] in self._keys


class _LocalShards:
    """Pipeline stage that keeps a worker's shards and replaces their names by local paths."""

    def __init__(self, reader: Shards) -> None:
        self._reader = reader

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        import webdataset as wds  # noqa: PLC0415

        for shard in wds.split_by_worker(shards):
            # An absolute path, because webdataset runs a URL such as `pipe:…` as a command.
            yield {**shard, "url": str(self._reader.local_path(shard["url"]).absolute())}


class _Decoder:
    """Function from webdataset's dictionary of bytes to `AVSample`; it never unpickles."""

    def __init__(self, info: Mapping[str, Any], name: str, shape: SampleShape, *, normalize: bool) -> None:
        self._name, self._shape = name, shape
        self._is_strip = stores_strips(info)
        stats = info["mel_stats"] if normalize else None
        self._normalization: MelNormalization | None = stats and mel_normalization(stats, self._shape)

    def __call__(self, sample: Mapping[str, Any]) -> AVSample:
        # torch warns about read-only memory.
        members = {
            name: memoryview(bytearray(data)) for name, data in sample.items() if isinstance(data, bytes)
        }
        mel = torch.empty(self._shape.mel)
        frames = self._shape.empty_frames(strip=self._is_strip)
        waveform = None if self._shape.waveform is None else torch.empty(self._shape.waveform)
        assembler = BatchAssembler()
        try:
            assembler.mel(members, self._shape, self._normalization, mel)
            assembler.frames(members, self._shape, frames, strip=self._is_strip)
            if waveform is not None:
                assembler.waveform(members, self._shape, waveform)
            label, metadata = int(bytes(members["cls"])), json.loads(bytes(members["json"]))
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            raise sample_error(error, sample["__key__"], sample["__url__"], self._name) from error
        return AVSample(
            mel=mel.unsqueeze(1), frames=self._shape.sample_tensor(frames, strip=self._is_strip),
            label=label, key=str(sample["__key__"]), metadata=metadata,
            waveform=waveform, sample_rate=self._shape.sample_rate,
        )  # fmt: skip
