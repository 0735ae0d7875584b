"""Variants of avdata's own reading, for `stream.py`: many shards, audio alone, and the map-style view.

A child process measures one variant without workers; the variants of a pair take turns. The ratio is that of
the medians of the samples per second of CPU time, which other processes disturb least.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from claims import Claim, at_least
from stream_peers import BATCH

# Name: storage, samples per shard, samples (0: those of the other sets). Small samples: a shard costs more.
SETS = {"12-shards": ("npy", 100, 1200), "1200-shards": ("npy", 1, 1200), "jpeg": ("jpeg", 100, 0)}
MAX_FILES = 1024  # usual limit of open files


def _loader(name: str, **options: Any) -> Callable[[Path, int], Iterable[Any]]:
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


VARIANTS: dict[str, Callable[[Path, int], Iterable[Any]]] = {
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


def compare_variants(measure: Callable[[str], dict[str, float]], rounds: int) -> list[Claim]:
    """Return the ratios of the samples per second of CPU time of each pair."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    claims = []
    for first, second, title, least in PAIRS:
        found: dict[str, list[float]] = {first: [], second: []}
        for _ in range(rounds):
            for name, rates in found.items():
                rates.append(measure(name)["cpu_rate"])
        base, other = (statistics.median(found[name]) for name in (first, second))
        print(f"\n{title}: {base:.0f} and {other:.0f} samples per second of CPU time")
        claims.append(at_least(f"stream: {title}", other / base, least))
    return claims
