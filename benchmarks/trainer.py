"""Trainer beside the bare loop, and its default number of threads beside one and two.

    python benchmarks/trainer.py --steps 250 --rounds 3

Trainer and bare loop make the same optimizer steps on the same generated dataset, in turn, in this process.
Evaluations, recalibrations, checkpoints and logs are part of the trainer. Time is the process's CPU time,
which other work on the machine does not stretch.

For the threads, `snnergy train` runs with its default, one and two threads, in turn, each in a process of its
own and with its start. Wall time depends on the other work on the machine, to which the default adapts.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from claims import Claim, at_most, main, make_parser, set_quick
from torch.nn import functional

import avdata
from snnergy.data import open_split, to_device
from snnergy.models.network import build
from snnergy.training.config import resolve_config
from snnergy.training.trainer import train


def bare(where: Path, steps: int) -> None:
    torch.manual_seed(42)
    loader = open_split(where, "train", shuffle=True, seed=42).loader(32, num_workers=0)
    network = build("nano", num_classes=2, video_channels=3)
    optimizer = torch.optim.AdamW(network.parameter_groups(0.05), lr=2e-3, fused=True)
    done = 0
    while done < steps:
        for batch in loader:
            made = to_device(batch)
            optimizer.zero_grad()
            functional.cross_entropy(network(made.audio, made.video), made.label).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            done += 1
            if done == steps:
                break


def measure(options: argparse.Namespace) -> list[Claim]:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "set"
        avdata.prepare("synthetic", output=where, workers=2)
        spent: dict[str, list[float]] = {"bare loop": [], "trainer": []}
        # The first round is short and warms up.
        for number in range(options.rounds + 1):
            many = options.steps if number else 4
            runs = {
                "bare loop": partial(bare, where, many),
                "trainer": partial(
                    train,
                    where,
                    Path(folder) / f"run{number}",
                    resolve_config("quick", {"model": "nano", "steps": many}),
                    device="cpu",
                ),
            }
            for name, run in runs.items():
                began = time.process_time()
                run()
                if number:
                    spent[name].append(time.process_time() - began)
    floor = statistics.median(spent["bare loop"])
    for name, times in spent.items():
        middle = statistics.median(times)
        print(f"{name:10} {middle:8.2f} s  {middle / floor:5.2f} × the bare loop")
    title = f"trainer ÷ bare loop, CPU time, {options.steps} steps of nano, batch 32"
    return [at_most(title, statistics.median(spent["trainer"]) / floor, 1.3), *measure_threads(options)]


CHOICES = {"default": [], "1 thread": ["--threads", "1"], "2 threads": ["--threads", "2"]}


def measure_threads(options: argparse.Namespace) -> list[Claim]:
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in CHOICES}
    with tempfile.TemporaryDirectory() as folder:
        avdata.prepare("synthetic", output=f"{folder}/set", workers=2)
        command = [sys.executable, "-m", "snnergy", "train", f"{folder}/set", "--device", "cpu", "--json"]
        command += [
            "--quiet",
            "--train-preset",
            "quick",
            "--model",
            options.model,
            "--steps",
            str(options.steps),
        ]
        for number in range(options.rounds):
            for name, words in CHOICES.items():
                spent[name].append(run_for_times([*command, *words, "-o", f"{folder}/{name} {number}"]))
    wall, cpu = (
        {name: statistics.median(pair[which] for pair in pairs) for name, pairs in spent.items()}
        for which in (0, 1)
    )
    for name in CHOICES:
        print(f"{name:10} {wall[name]:8.1f} s wall {cpu[name]:8.1f} s CPU")
    title = f"{options.steps} steps of {options.model}, batch 32, load {os.getloadavg()[0]:.1f}"
    best = min(wall["1 thread"], wall["2 threads"])
    return [
        at_most(f"default ÷ better of 1 and 2 threads, wall time, {title}", wall["default"] / best, 1.1),
        at_most(f"default ÷ 1 thread, CPU time, {title}", cpu["default"] / cpu["1 thread"], 1.3),
    ]


def run_for_times(command: list[str]) -> tuple[float, float]:
    """Return wall and user CPU time of a command, seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="nano", help="network of the runs with threads")
    main(set_quick(parser, steps=60), measure)
