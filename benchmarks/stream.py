"""Streaming of prepared datasets beside webdataset, mosaicml-streaming, litdata, datasets, and a folder.

    python benchmarks/stream.py                         # all: about 20 minutes and 3 GB of disk
    python benchmarks/stream.py --samples 400 --rounds 1 --storage npy --workers 0

The same samples, 818 KB each (five frames of 224², 128 mel bands), are written in each peer's own format;
avdata and webdataset read the same tars. Each measurement is a new process. The contenders take turns, with
each number of workers; the table shows medians, and a ratio is the median of the ratios of the rounds. For
arrays without workers, avdata, memcpy and the peers of this environment also take turns pass by pass in one
process, and their ratios replace those of the table: see stream_turns.py. `first` is from opening to the
first batch with an empty (`cold`) or filled (`warm`) page cache; samples/s are of complete passes with a warm
cache except the first, which is printed as `cold/s` for an empty cache. Memory is that of the process and its
workers in the middle of a pass, including Python, torch and the pages of mapped files. Batches are taken as
they are returned: [B, T, C, H, W], from avdata as a view of memory in the decoder's order.

Lower bounds: `memcpy` copies the same bytes from mapped files into two existing batches in one thread, in
order batch by batch, in random order sample by sample; `decode`
is a loop of torchvision's JPEG decoder over the same strips in memory, in as many threads as workers.

mosaicml-streaming and litdata need pins that contradict avdata's: they get a separate environment, made with
venv and pip beside the data (`--peers PYTHON` names an existing one), which sees this torch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, main, make_parser, set_quick
from stream_peers import BATCH, PEERS, files_of
from stream_samples import SIZE, make_ours, make_raw
from stream_turns import (
    SETS,
    TURNS,
    VARIANTS,
    Memcpy,
    compare_variants,
    num_samples,
    rates_in_turns,
    ratio_of_turns,
)

PINS = [
    # Its own pins (numpy < 2.2 among them) are of 2024: held to them, pip goes back to a release of 2022.
    ["--no-deps", "mosaicml-streaming==0.13.0", "litdata==0.2.76"],
    ["transformers<5", "xxhash<4", "zstd", "Brotli", "python-snappy", "boto3", "catalogue", "paramiko<4",
     "obstore", "tifffile", "lightning-utilities", "lightning-sdk"],
]  # fmt: skip
SECONDS = 1.0  # least duration of a measurement
OURS = "avdata"
APART = ("mosaicml-streaming", "litdata")  # the others are dependencies of avdata or of its tests
TARGETS = {"memcpy": 0.5, "peer": 2.5}  # of arrays without workers


# -- one measurement, in a process of its own ------------------------------------------------------------


def ours(data: Path, storage: str, workers: int, order: str) -> Iterable[Any]:
    import avdata

    made = avdata.open(data / f"ours-{storage}", "train", shuffle=order == "random")
    return made.loader(BATCH, num_workers=workers)


def loader_of(name: str) -> Any:
    """Return the function that opens a contender."""
    if name == "memcpy":
        return lambda data, storage, workers, order: Memcpy(data / f"ours-{storage}", order)
    return ours if name == OURS else PEERS[name][1]


def warm(name: str, data: Path, storage: str, cold: bool) -> None:
    """Read the contender's files into the page cache, or drop them from it."""
    for path in files_of(name, data, storage):
        with path.open("rb") as stream:
            if cold:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while stream.read(1 << 22):
                    pass


def measured(name: str, data: Path, storage: str, workers: int, order: str, cold: bool) -> dict[str, float]:
    """First batch, samples a second and memory of one contender."""
    import torch

    torch.set_num_threads(1)
    load = loader_of(name)
    # What is imported on the first use is not what is measured.
    next(iter(load(data, storage, 0, order)))
    samples = len(np.load(data / "raw" / "mel.npy", mmap_mode="r"))
    warm(name, data, storage, cold)
    began = time.perf_counter()
    loader = load(data, storage, workers, order)
    passes, first, memory = [], None, 0.0
    while len(passes) < (1 if cold else 2) or (sum(wall for _, wall, _ in passes) < SECONDS and not cold):
        start, cpu_start, got = time.perf_counter(), time.process_time(), 0
        for batch in loader:
            first = first or time.perf_counter() - began
            got += num_samples(batch)
            if cold and got > samples // 2:
                memory = memory or resident()
        passes.append((got, time.perf_counter() - start, time.process_time() - cpu_start))
    total, wall, cpu = map(sum, zip(*(passes[1:] or passes), strict=True))
    return {"first": first or 0.0, "rate": total / wall, "cpu_rate": total / cpu, "memory": memory}


def resident() -> float:
    """MB of this process and its workers; what they share counts once, mapped files where they are used."""
    children = Path("/proc/self/task").glob("*/children")
    pids = ["self", *(pid for path in children for pid in path.read_text().split())]
    total = 0
    for pid in pids:
        try:
            lines = Path("/proc", pid, "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def in_turns(data: Path, storage: str, order: str, *names: str) -> dict[str, list[float]]:
    """Samples a second of CPU time of contenders without workers, or of variants of avdata."""
    import torch

    torch.set_num_threads(1)
    return rates_in_turns(
        {
            name: VARIANTS[name](data, 0) if name in VARIANTS else loader_of(name)(data, storage, 0, order)
            for name in names
        },
        TURNS,
    )


def memcpy_floor(data: Path, storage: str, order: str) -> float:
    """Samples a second of copying the samples' bytes."""
    copies = Memcpy(data / f"ours-{storage}", order)

    def copy(share: int) -> None:
        for _ in copies:
            pass

    return _rate(copy, 1, copies.num_samples)


def decode_floor(data: Path, threads: int) -> float:
    """Samples a second of decoding the strips in a tight loop."""
    import torch
    from torchvision.io import decode_jpeg

    torch.set_num_threads(1)
    strips = [
        torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        for path in sorted((data / "raw").glob("*.jpg"))
    ]

    def decode(share: int) -> None:
        for strip in strips[share::threads]:
            decode_jpeg(strip)

    return _rate(decode, threads, len(strips))


def _rate(work: Any, threads: int, samples: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            list(pool.map(work, range(threads)))
            done += samples
        return done / (time.perf_counter() - began)


# -- all of them in turn ---------------------------------------------------------------------------------


def peers_python(folder: Path) -> str:
    """An environment with the peers, made on the first use."""
    python = folder / "bin" / "python"
    if not python.exists():
        print("making the peers' environment", flush=True)
        venv.create(folder, with_pip=True)
        ours_too = [path for path in sys.path if path.endswith("site-packages")]
        (folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "ours.pth").write_text(
            "\n".join(ours_too)
        )
        for pins in PINS:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    return str(python)


def child(python: str, data: Path, *arguments: str) -> dict[str, Any]:
    """What one measurement in a process of its own found; empty where the peer failed."""
    command = [python, __file__, "--data", str(data), "--child", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        print(f"  {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return {}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepared(data: Path, samples: int, storages: list[str], peers: str, names: list[str]) -> None:
    if not (data / "raw").exists():
        make_raw(data, samples)
    for storage in storages:
        if not (data / f"ours-{storage}").exists():
            make_ours(data, storage)
        for name in names:
            if name in PEERS and PEERS[name][0] and not (data / f"{PEERS[name][2]}-{storage}").exists():
                child(peers if name in APART else sys.executable, data, "write", name, storage)


def compared(
    data: Path, peers: str, names: list[str], case: tuple[str, str], workers: list[int], rounds: int
) -> list[Claim]:
    """Measure all contenders with all numbers of workers, for one storage and order; print the tables."""
    storage, order = case
    turns = [(name, number) for number in workers for name in names]
    found: dict[tuple[str, int], list[dict[str, float]]] = {turn: [] for turn in turns}
    chill: dict[tuple[str, int], list[dict[str, float]]] = {turn: [] for turn in turns}
    floors: dict[int, list[float]] = {number: [] for number in workers}
    for _ in range(rounds):
        for number in workers:
            threads = 1 if storage == "npy" else max(number, 1)
            floor = child(sys.executable, data, "floor", storage, str(threads), order)
            floors[number].append(floor.get("rate", float("nan")))
        for name, number in turns:
            python = peers if name in APART else sys.executable
            arguments = (name, storage, str(number), order)
            found[name, number].append(child(python, data, "warm", *arguments))
            chill[name, number].append(child(python, data, "cold", *arguments))
    megabytes = sum(path.stat().st_size for path in files_of(OURS, data, storage)) / 1e6
    a_sample = megabytes / len(np.load(data / "raw" / "mel.npy", mmap_mode="r"))
    claims = []
    for number in workers:
        title = f"{storage}, {number} workers, {order}, {a_sample * 1000:.0f} KB per sample"
        print(f"\n{title}")
        ratios = print_table(
            {name: (found[name, number], chill[name, number]) for name in names},
            floors[number], "memcpy" if storage == "npy" else "decode", a_sample,
        )  # fmt: skip
        targets = TARGETS if (storage, number) == ("npy", 0) else {}
        if targets:
            ratios |= compared_in_turns(data, [name for name in names if name not in APART], case)
        for other, ratio in ratios.items():
            claims.append(Claim(f"stream: samples/s ÷ {other}, {title}", ratio, targets.get(other)))
        best = min(ratio for other, ratio in ratios.items() if other in names)
        claims.append(Claim(f"stream: samples/s ÷ fastest peer, {title}", best, targets.get("peer")))
    return claims


def compared_in_turns(data: Path, names: list[str], case: tuple[str, str]) -> dict[str, float]:
    """Return avdata's ratios to memcpy and to peers without workers, measured in turns; print them."""
    found = child(sys.executable, data, "turns", *case, *names, "memcpy")
    ratios = {name: ratio_of_turns(found[OURS], rates) for name, rates in found.items() if name != OURS}
    print(
        f"in {TURNS} turns: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), flush=True
    )
    return ratios


Runs = list[dict[str, float]]


def print_table(
    found: dict[str, tuple[Runs, Runs]], floors: list[float], kind: str, a_sample: float
) -> dict[str, float]:
    """Print the medians, warm and cold; return avdata's ratio to each peer and to the lower bound."""
    print(f"{'':20}{'samples/s':>10}{'MB/s':>8}{'cold/s':>8}{'first s':>9}{'cold s':>8}{'MB':>7}  avdata ÷")
    middle = {
        name: [
            statistics.median(one[field] for one in runs if one) if any(runs) else float("nan")
            for runs, field in (
                (warm, "rate"), (cold, "rate"), (warm, "first"), (cold, "first"), (cold, "memory"),
            )
        ]
        for name, (warm, cold) in found.items()
    }  # fmt: skip
    rates = {name: [run.get("rate", float("nan")) for run in warm] for name, (warm, _) in found.items()}
    ratios = {name: ratio_of_turns(rates[OURS], rates[name]) for name in found if name != OURS}
    floor = statistics.median(floors)
    for name, (rate, cold, first, first_cold, memory) in middle.items():
        ratio = f"{ratios[name]:.2f}" if name != OURS else ""
        shown = f"{name:20}{rate:10.0f}{rate * a_sample:8.0f}{cold:8.0f}{first:9.3f}{first_cold:8.3f}"
        print(f"{shown}{memory:7.0f}  {ratio}")
    ratios[kind] = ratio_of_turns(rates[OURS], floors)
    print(f"{kind:20}{floor:10.0f}{floor * a_sample:8.0f}{'':32}  {ratios[kind]:.2f}", flush=True)
    return ratios


def measure(options: argparse.Namespace) -> list[Claim]:
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder)
        names = [OURS, *options.only]
        peers = options.peers or (peers_python(data / "peers") if {*options.only} & {*APART} else "")
        prepared(data, options.samples, options.storage, peers, names)
        for storage in options.storage:
            for order in options.order:
                case = storage, order
                claims += compared(data, peers, names, case, options.workers, options.rounds)
        if options.variants:
            for name, (storage, each, total) in SETS.items():
                if not (data / f"ours-{name}").exists():
                    make_ours(data, storage, each, name=name, size=64 if total else SIZE, samples=total)
            claims += compare_variants(
                lambda *pair: child(sys.executable, data, "turns", "npy", "random", *pair)
            )
    return claims


def answered(data: Path, what: str, *arguments: str) -> dict[str, Any]:
    """One job of a child process."""
    if what == "write":
        name, storage = arguments
        write = PEERS[name][0]
        assert write is not None
        write(data, storage)
        return {}
    if what == "floor":
        storage, threads, order = arguments
        if storage == "npy":
            return {"rate": memcpy_floor(data, storage, order)}
        return {"rate": decode_floor(data, int(threads))}
    if what == "turns":
        return in_turns(data, *arguments)
    name, storage, workers, order = arguments
    return measured(name, data, storage, int(workers), order, cold=what == "cold")


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", nargs="*", default=["npy", "jpeg"])
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--order", nargs="*", default=["ordered", "random"])
    parser.add_argument("--only", nargs="*", default=list(PEERS), help="only these peers")
    parser.add_argument(
        "--variants", action=argparse.BooleanOptionalAction, default=True,
        help="compare avdata with itself as well; see stream_turns.py",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, help="folder of the data, used again; default: temporary")
    parser.add_argument("--peers", help="python of an environment that has the peers")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = set_quick(parser, samples=160, rounds=1, storage=["npy"], workers=[0], order=["random"],
                        only=["webdataset", "folder"])  # fmt: skip
    if options.child:
        print(json.dumps(answered(options.data, *options.child)))
    else:
        main(options, measure)
