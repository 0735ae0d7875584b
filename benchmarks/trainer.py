"""What the trainer costs beside the bare loop: evaluations, recalibrations, checkpoints and logs together.

    python benchmarks/trainer.py [STEPS] [ROUNDS]

Both make the same optimizer steps on the same generated set, in turn, in this process. Time is the process's
CPU time, which other work on the machine does not stretch. Threads are as the environment says;
OMP_NUM_THREADS=1 is the steadiest.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
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


def main(steps: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "set"
        avdata.prepare("synthetic", output=where, workers=2)
        spent: dict[str, list[float]] = {"bare loop": [], "trainer": []}
        # The first round is short and warms up.
        for number in range(rounds + 1):
            many = steps if number else 4
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
    print(f"{steps} steps of nano, batch 32, {torch.get_num_threads()} threads, {rounds} rounds, CPU seconds")
    for name, times in spent.items():
        middle = statistics.median(times)
        print(f"{name:10} {middle:8.2f} s  {middle / floor:5.2f} x the bare loop")


if __name__ == "__main__":
    main(*(int(word) for word in [*sys.argv[1:], "250", "1"][:2]))
