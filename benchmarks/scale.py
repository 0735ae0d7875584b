"""What a clip costs as a preparation grows, and what the engines add to the work itself.

    python benchmarks/scale.py                          # 100, 1,000 and 10,000 mock clips, local and Ray
    python benchmarks/scale.py --sizes 100 400 --compare 400
    python benchmarks/scale.py --load 20000             # mock clips of VGGSound: Ray, then object storage

Three claims. Cost per clip is flat: the slope of log(CPU seconds a clip) over log(clips), 0 when flat. The
engines cost little: the same shards are made in one plain loop (the floor), by one local worker and by one
Ray worker, in turns; the ratios are of the medians, of CPU and wall seconds, over all shards but the first:
over that one a worker loads its libraries, which the plain loop has already. How much longer it took than the
others' mean is printed beside, as the start. Our own code is a small share: the rest is decoding, transforms
and writing by libraries, told apart by a profile of the plain loop. CPU seconds are those of this process and
its children; Ray's workers are not its children, so of Ray only wall seconds are compared.

`--load` prepares ten-second clips with the workers of a Ray cluster on this machine, and again from and to
an S3 emulator with local workers, and compares the shards. Its source repeats 32 different clips.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import pstats
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
from claims import Claim, at_most, main, make_parser, set_quick

import avdata
from avdata.features.audio import feature_filterbank
from avdata.pipeline.engines import local as engine
from avdata.pipeline.engines import ray as engine_ray
from avdata.pipeline.output_dir import LocalOutput
from avdata.pipeline.planning import plan_preparation
from avdata.pipeline.shard_job import ShardJob, exclude_clip, run_shard_job
from avdata.storage.remote import open_filesystem

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
from memory import print_table
from support.object_stores import store

SHARD = 64


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def jobs_of(source: Path, out: Path) -> list[ShardJob]:
    planned = plan_preparation("synthetic", source=source, config={"shards": {"samples_per_shard": SHARD}})
    recipe, config, filterbank = planned.recipe, planned.config, feature_filterbank(planned.config.audio)
    return [
        ShardJob(
            LocalOutput(out), name, clips, config, recipe.labels, recipe.background, filterbank=filterbank
        )
        for name, clips in planned.jobs
    ]


def cost(clips: int, folder: Path) -> tuple[float, float, int]:
    """CPU and wall seconds a clip of a whole preparation, survey and finish included; peak memory, KiB."""
    source = avdata.mock("synthetic", folder / f"raw{clips}", clips=clips)
    began, used = time.perf_counter(), cpu()
    avdata.prepare(
        "synthetic",
        source=source,
        output=folder / f"out{clips}",
        config={"shards": {"samples_per_shard": SHARD}},
        workers=0,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (cpu() - used) / clips, (time.perf_counter() - began) / clips, peak


def slope(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Of log(cost) over log(clips), by least squares."""
    xs, ys = [math.log(size) for size in sizes], [math.log(one) for one in costs]
    x, y = statistics.mean(xs), statistics.mean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def timed(run: Callable[..., Any], jobs: list[ShardJob], **more: Any) -> tuple[float, float, float]:
    """Wall seconds from the first shard's end to the last's, CPU seconds of all, and what the start took."""
    began, used = time.perf_counter(), cpu()
    ends = [
        time.perf_counter()
        for _ in run(run_shard_job, jobs, item_timeout=600.0, exclude=exclude_clip, **more)
    ]
    wall = ends[-1] - ends[0]
    return wall, cpu() - used, ends[0] - began - wall / max(len(jobs) - 1, 1)


def compare(source: Path, folder: Path, rounds: int) -> float:
    """Print the seconds of the engines; return the CPU time of the local one ÷ that of the plain loop."""
    contenders: dict[str, Callable[[list[ShardJob]], tuple[float, float, float]]] = {
        "plain loop": lambda jobs: timed(engine.run_jobs, jobs, workers=0),
        "local": lambda jobs: timed(engine.run_jobs, jobs, workers=1),
        "ray": lambda jobs: timed(engine_ray.run_jobs, jobs, workers=1, address="local"),
    }
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    jobs = jobs_of(source, folder)
    for turn in range(rounds):
        for name, contender in contenders.items():
            first, every = (
                [replace(job, output=LocalOutput(folder / f"{name}{turn}{part}")) for job in jobs]
                for part in "ab"
            )
            wall, used, start = contender(every)
            # Of CPU the same part: a child's is known when it has ended, so the first is made once more.
            taken[name].append((wall, used - (contender(first[:1])[1] if name != "ray" else 0), start))
    middle = {
        name: [statistics.median(one[part] for one in held) for part in range(3)]
        for name, held in taken.items()
    }
    floor = middle["plain loop"]
    clips = sum(len(job.clips) for job in jobs[1:])
    print(f"\nengines over {clips:,} clips in {len(jobs) - 1} shards, medians of {rounds} rounds")
    for name, (wall, used, start) in middle.items():
        spent = f"{used / floor[1] - 1:+7.1%} cpu" if name != "ray" else " " * 11
        print(f"{name:12} {wall:7.2f} s  {wall / floor[0] - 1:+7.1%} wall {spent}  {start:5.2f} s to start")
    return middle["local"][1] / floor[1]


def own_share(source: Path, folder: Path) -> float:
    """Share of the plain loop's time in functions of avdata itself."""
    jobs = jobs_of(source, folder / "profile")
    run_shard_job(jobs[0], lambda item: None)  # loads the libraries
    profile = cProfile.Profile()
    profile.enable()
    for job in jobs[1:]:
        run_shard_job(job, lambda item: None)
    profile.disable()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    home = str(Path(avdata.__file__).parent)
    own = sum(entry[2] for (file, _, _), entry in stats.items() if file.startswith(home))
    return own / sum(entry[2] for entry in stats.values())


LOAD_SETTINGS = {
    "audio": {"n_mels": 32, "hop_length": 500},
    "video": {"size": 32},
    "shards": {"samples_per_shard": 256},
}


def load(clips: int, folder: Path) -> None:
    """Prepare a mock of VGGSound with Ray, then from and to object storage; fail if the shards differ."""
    source = avdata.mock("vggsound", folder / "raw", clips=clips)

    def run(name: str, output: str | Path, **options: Any) -> dict[str, Any]:
        began = time.perf_counter()
        avdata.prepare("vggsound", output=output, config=LOAD_SETTINGS, **options)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with fsspec.open(f"{output}/dataset.json") as file:
            info: dict[str, Any] = json.load(file)
        samples = sum(split["samples"] for split in info["splits"].values())
        print(
            f"{name:15} {samples:8,} clips {seconds:8.1f} s {samples / seconds:8.1f}/s {peak:6.0f} MiB",
            flush=True,
        )
        return info

    ray = run("ray", folder / "ray", source=source, engine="ray", ray_address="local")
    with store("s3") as environment:
        os.environ.update(environment)
        files, _ = open_filesystem("s3://load")
        files.mkdir("load")
        files.put(f"{source}/", "load/raw/", recursive=True)
        remote = run("object storage", "s3://load/out", source="s3://load/raw")
    if ray["splits"] != remote["splits"]:
        sys.exit("the shards differ")
    print("the shards are identical")


def measure(options: argparse.Namespace) -> list[Claim]:
    if options.memory:
        return print_table(options.clips, options.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.load:
            load(options.load, folder)
            return []
        cost(20, folder)  # loads the libraries
        costs, claims = [], []
        print("clips     cpu ms/clip  wall ms/clip  peak memory")
        for size in options.sizes:
            used, wall, peak = cost(size, folder)
            costs.append(used)
            print(f"{size:8,} {used * 1e3:12.2f} {wall * 1e3:13.2f} {peak / 1024:9.0f} MiB", flush=True)
        if len(costs) > 1:
            title = (
                f"prepare: exponent of the CPU time per clip, {options.sizes[0]:,} to {options.sizes[-1]:,}"
            )
            claims.append(at_most(title, slope(options.sizes, costs), 0.05, ""))
        source = avdata.mock("synthetic", folder / "compare", clips=options.compare)
        share = own_share(source, folder)
        claims.append(Claim("prepare: share of avdata's own code in the time of the work", share, unit=""))
        ratio = compare(source, folder, options.rounds)
        title = f"prepare: CPU time of the local engine ÷ plain loop, {options.compare:,} clips"
        return [*claims, at_most(title, ratio, 1.1)]


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--compare", type=int, default=1_000, help="clips of the comparison of engines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="only the memory per clip of each command")
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000], help="of plan and finish")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of --memory"
    )
    parser.add_argument("--load", type=int, metavar="CLIPS", help="only the load run, with so many clips")
    main(
        set_quick(
            parser, sizes=[100, 1000], compare=300, rounds=1, clips=[2000, 8000], rows=[10_000, 50_000]
        ),
        measure,
    )
