"""Streams that take turns in one process, for `stream.py`: a pass of each, then a pass of each again.

The passes of a turn follow one another within a second, so that other processes and the memory of the machine
disturb them alike. A ratio is the median of the ratios of the turns, in samples per second of CPU time.

Variants of avdata's own reading: many shards, audio alone, and the map-style view.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, at_least
from stream_peers import BATCH, count

# Name: storage, samples per shard, samples (0: those of the other sets). Small samples: a shard costs more.
SETS = {"12-shards": ("npy", 100, 1200), "1200-shards": ("npy", 1, 1200), "jpeg": ("jpeg", 100, 0)}
MAX_FILES = 1024  # usual limit of open files
TURNS = 7

Load = Callable[[Path, int], Iterable[Any]]


class Memcpy:
    """Copies of the bytes of all samples from mapped files into two existing batches in turn.

    Args:
        root: Prepared dataset.
        order: `ordered`: a batch is one copy of consecutive bytes. `random`: a copy per sample.
    """

    def __init__(self, root: Path, order: str) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(root / "index.parquet", columns=["shard", "offset", "nbytes"])
        shards, starts, sizes = (column.to_pylist() for column in table.columns)
        maps = {shard: np.memmap(root / shard, np.uint8, "r") for shard in dict.fromkeys(shards)}
        self._order, self.num_samples = order, len(shards)
        if order == "random":
            places = zip(shards, starts, sizes, strict=True)
            self._parts = [maps[shard][start : start + size] for shard, start, size in places]
        else:
            step = BATCH * max(sizes)
            self._parts = [file[at : at + step] for file in maps.values() for at in range(0, len(file), step)]
        self._per_batch = BATCH if order == "random" else 1
        self._room = max(map(len, self._parts))
        self._batches = [np.zeros((self._per_batch, self._room), np.uint8) for _ in range(2)]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, range]]:
        """Yield batches as a peer does; their labels are only numbers."""
        order = np.arange(len(self._parts))
        if self._order == "random":
            np.random.default_rng().shuffle(order)
        samples = self.num_samples
        for number, start in enumerate(range(0, len(order), self._per_batch)):
            batch = self._batches[number % 2]
            for place, part in enumerate(order[start : start + self._per_batch].tolist()):
                batch[place, : len(self._parts[part])] = self._parts[part]
            done = math.ceil(samples * min(start + self._per_batch, len(order)) / len(order))
            yield batch, batch, range(done - math.ceil(samples * start / len(order)))


def _loader(name: str, **options: Any) -> Load:
    def load(data: Path, workers: int) -> Iterable[Any]:
        import avdata

        dataset = avdata.open(data / f"ours-{name}", "train", shuffle=True, **options)
        return dataset.loader(BATCH, num_workers=workers)

    return load


def _map_style(data: Path, workers: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    import avdata

    dataset: Any = avdata.open(data / "ours-12-shards", "train")
    return DataLoader(dataset.as_map(), BATCH, shuffle=True, collate_fn=avdata.collate, num_workers=workers)


def _by_sample(data: Path, workers: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    import avdata

    dataset = avdata.open(data / "ours-12-shards", "train", shuffle=True)
    return DataLoader(dataset, BATCH, collate_fn=avdata.collate, num_workers=workers)


VARIANTS: dict[str, Load] = {
    "shards-12": _loader("12-shards"),
    "shards-1200": _loader("1200-shards"),
    "jpeg-av": _loader("jpeg"),
    "jpeg-audio": _loader("jpeg", modalities=("audio",)),
    "iterable": _by_sample,
    "map-style": _map_style,
}
# A pair, its title, and the least ratio of the second to the first.
PAIRS = [
    ("shards-12", "shards-1200", "1,200 shards ÷ 12 shards, arrays, limit of 1,024 open files", 0.95),
    ("jpeg-av", "jpeg-audio", "audio alone ÷ audio and video, JPEG", 4.0),
    ("iterable", "map-style", "map-style ÷ iterable, arrays, torch's DataLoader without workers", 0.9),
]


def num_samples(batch: Any) -> int:
    """Samples of a batch of avdata, without padding, or of a peer."""
    return int(batch.weight.count_nonzero()) if hasattr(batch, "weight") else count(batch)


def rates_in_turns(loaders: Mapping[str, Iterable[Any]], turns: int) -> dict[str, list[float]]:
    """Return the samples per second of CPU time of each loader in each turn, after one to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(turns + 1):
        for name, loader in loaders.items():
            start = time.process_time()
            samples = sum(map(num_samples, loader))
            rates[name].append(samples / (time.process_time() - start))
    return {name: found[1:] for name, found in rates.items()}


def ratio_of_turns(first: list[float], second: list[float]) -> float:
    """Return the median of the ratios of two measurements of the same turns; NaN is one that failed."""
    ratios = [one / other for one, other in zip(first, second, strict=True)]
    return statistics.median([ratio for ratio in ratios if not math.isnan(ratio)] or [math.nan])


def compare_variants(measure: Callable[[str, str], dict[str, list[float]]]) -> list[Claim]:
    """Return the ratio of the second variant of each pair to the first."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    claims = []
    for first, second, title, least in PAIRS:
        found = measure(first, second)
        base, other = (found.get(name, [math.nan]) for name in (first, second))
        rates = f"{statistics.median(base):.0f} and {statistics.median(other):.0f}"
        print(f"\n{title}: {rates} samples per second of CPU time")
        claims.append(at_least(f"stream: {title}", ratio_of_turns(other, base), least))
    return claims
