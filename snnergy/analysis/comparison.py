"""The comparison: fusions times seeds, trained by one protocol, as a table that can be cited.

Every run is a folder of its own and is made once: killed, the same command goes on, and a finished run is not
repeated. What is compared is our own runs and nothing else; published numbers come from other protocols.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from avdata.errors import AvdataError, UsageError
from avdata.progress import Progress
from avdata.storage.atomic import atomic_write
from snnergy.analysis.energy import Energy, measure_energy
from snnergy.data import Batch, audio_video_batches, batches, did_you_mean, diff_settings, open_split
from snnergy.fusion.registry import FUSIONS
from snnergy.models.network import SNNergy
from snnergy.training.checkpoint import load_network, read_config
from snnergy.training.config import TrainConfig
from snnergy.training.distributed import Device
from snnergy.training.gradient_modulation import OGMGE
from snnergy.training.plots import plot_comparison
from snnergy.training.trainer import RESUME_MAY_CHANGE, network_for, train

DEFAULT_FUSIONS = ("audio", "video", "concat", "ccssa", "cmqka")
"""MODEL.md §9.2: the smallest table that is worth showing."""

TIMING_BATCH_SIZE, TIMING_ROUNDS = 8, 5

ENERGY_BATCHES = 16
"""Of eight samples each: firing rates settle long before."""


@dataclass(frozen=True)
class Row:
    """One fusion over its seeds.

    Attributes:
        fusion: its name.
        accuracy: of each seed, on the test split.
        params: weights.
        ms: to evaluate one sample, in a batch of eight; median.
        megabytes: a training step of eight samples holds at most (GPU), or keeps for its backward (CPU).
        energy: of its first seed's network, counted on samples of the split that accuracy is of.
    """

    fusion: str
    accuracy: tuple[float, ...]
    params: int
    ms: float
    megabytes: float
    energy: Energy

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.accuracy)

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the accuracy; None for one seed."""
        return statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else None


def compare_fusions(
    dataset: str | Path,
    output: str | Path,
    config: TrainConfig,
    *,
    fusions: Sequence[str] = (),
    seeds: int = 3,
    device: Device = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> list[Row]:
    """Train every fusion with every seed, and write `table.md`, `table.csv` and `table.png`.

    Args:
        dataset: the prepared set.
        output: the folder of the table and, below `runs/`, of all runs.
        config: the settings of all; its fusion and seed are set.
        fusions: names of `FUSIONS`; none: those of `DEFAULT_FUSIONS`.
        seeds: how many, counted from the settings' own.
        device: `auto` takes a GPU where there is one.
        progress: called with a stage (`FUSION seed N`), done and total, in optimizer steps.

    Raises:
        UsageError: a name is unknown, a fusion does not go with the settings, or a run in `output` has
        others.
        AvdataError: the set has no split to compare by, or a training failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        msg = "a comparison is one process, and torchrun started several"
        raise UsageError(msg, hint="train big runs with snnergy train, into OUT/runs/FUSION-seedN")
    chosen = list(dict.fromkeys(fusions)) or list(DEFAULT_FUSIONS)
    for name in chosen:
        if name not in FUSIONS:
            msg = f"there is no fusion {name!r}"
            raise UsageError(msg, hint=did_you_mean(name, list(FUSIONS)))
    _check(dataset, [config.model_copy(update={"fusion": name}) for name in chosen])
    folder = Path(output)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for offset in range(seeds):
        for name in chosen:
            settled = config.model_copy(update={"fusion": name, "seed": config.seed + offset})
            run = folder / "runs" / f"{name}-seed{settled.seed}"
            stage = f"{name} seed {settled.seed}"
            found = _train_or_resume(dataset, run, settled, device, _prefix_progress(stage, progress))
            results[name].append(found)
    networks = {
        name: load_network(folder / "runs" / f"{name}-seed{config.seed}" / results[name][0]["chosen"])[0]
        for name in chosen
    }
    first = results[chosen[0]][0]
    costs = _costs(networks, dataset, _split(first), torch.device(str(first["device"])))
    rows = [
        Row(
            name, tuple(_accuracy(found) for found in results[name]), results[name][0]["params"], *costs[name]
        )
        for name in chosen
    ]
    _write(folder, rows, first, dataset)
    return rows


def _check(where: str | Path, configs: Sequence[TrainConfig]) -> None:
    """Refuse before the first training what would be refused after hours of it."""
    data = open_split(where, "train", rank=0, world_size=1)
    if not {"val", "test"} & set(data.info["splits"]):
        msg = f"{where} has neither a val nor a test split: there is nothing to compare by"
        raise AvdataError(msg, hint="prepare it with another --split-by; avdata info names them")
    for config in configs:
        # Without memory: it is only asked for.
        with torch.device("meta"):
            network = network_for(config, data)
            if config.ogm_ge:
                OGMGE(network, config.ogm_ge)


def _prefix_progress(stage: str, progress: Progress) -> Progress:
    return lambda _, done, steps: progress(stage, done, steps)


def _train_or_resume(
    where: str | Path, run: Path, config: TrainConfig, device: Device, progress: Progress
) -> dict[str, Any]:
    """A run's result: made, gone on with, or found finished."""
    finished = run / "result.json"
    if not finished.is_file():
        resume = (run / "config.json").is_file()
        return train(where, run, config, device=device, progress=progress, resume=resume)
    there = read_config(run)
    rows = diff_settings(there["config"], config.model_dump(mode="json"))
    other = [row for row in rows if row[0] not in RESUME_MAY_CHANGE]
    if other or there["set"] != str(where):
        said = ", ".join(f"{name}: {old} there, {new} now" for name, old, new in other)
        msg = f"{run} holds a run with other settings ({said or 'of the set ' + there['set']})"
        raise UsageError(msg, hint="give the comparison another --out")
    found: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return found


def _accuracy(found: Mapping[str, Any]) -> float:
    return float(found[_split(found)]["accuracy"])


def _split(found: Mapping[str, Any]) -> str:
    return "test" if "test" in found else "val"


def _costs(
    networks: Mapping[str, SNNergy], where: str | Path, split: str, device: torch.device
) -> dict[str, tuple[float, float, Energy]]:
    """Milliseconds a sample, megabytes and energy of each network; the networks are timed in turn."""
    loader = open_split(where, "train", rank=0, world_size=1).loader(TIMING_BATCH_SIZE, num_workers=0)
    (batch,) = batches(loader, 1, device)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(TIMING_ROUNDS + 1):
        for name, network in networks.items():
            times[name].append(_seconds(network.to(device).eval(), batch))
    # The training step moves the batch norms' averages, and firing rates with them: it comes last.
    energies = {name: _energy(network, where, split, device) for name, network in networks.items()}
    return {
        # The first round warms up.
        name: (
            statistics.median(taken[1:]) / TIMING_BATCH_SIZE * 1e3,
            training_bytes(networks[name], batch) / 1e6,
            energies[name],
        )
        for name, taken in times.items()
    }


def _energy(network: SNNergy, where: str | Path, split: str, device: torch.device) -> Energy:
    loader = open_split(where, split, rank=0, world_size=1).loader(TIMING_BATCH_SIZE, num_workers=0)
    return measure_energy(network, audio_video_batches(loader, ENERGY_BATCHES, device))


@torch.no_grad()
def _seconds(network: nn.Module, batch: Batch) -> float:
    on_gpu = batch.audio.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    network(batch.audio, batch.video)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def training_bytes(network: nn.Module, batch: Batch) -> int:
    """What a training step of a batch needs beside the weights.

    On a GPU, the most that was allocated in the step; on the CPU, whose allocator keeps no such account, what
    the forward pass keeps for the backward, each storage once.
    """
    network.train()
    if batch.audio.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        functional.cross_entropy(network(batch.audio, batch.video), batch.label).backward()
        network.zero_grad()
        return torch.cuda.max_memory_allocated() - before
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            # While it is held no other storage can have its address.
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(batch.audio, batch.video)
    return sum(kept.values())


COLUMNS = (
    "fusion", "accuracy", "std", "seeds", "params", "ms_a_sample", "megabytes",
    "sops_exact", "sops_rate", "mj_exact", "mj_rate", "mj_reference", "mj_with_memory",
)  # fmt: skip


def _write(folder: Path, rows: Sequence[Row], found: Mapping[str, Any], where: str | Path) -> None:
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            std = "" if row.std is None else f"{row.std:.6f}"
            cells = (f"{row.mean:.6f}", std, len(row.accuracy), row.params, f"{row.ms:.4f}")
            spent = (f"{value:.9g}" for value in row.energy.totals().values())
            writer.writerow((row.fusion, *cells, f"{row.megabytes:.3f}", *spent))
    atomic_write(folder / "table.md", _markdown(rows, found, where).encode())
    plot_comparison(
        [(row.fusion, row.accuracy, row.energy.millijoules()) for row in rows],
        1 / found["num_classes"],
        folder / "table.png",
    )


def _markdown(rows: Sequence[Row], found: Mapping[str, Any], where: str | Path) -> str:
    config, split = found["config"], _split(found)
    on_gpu = str(found["device"]).startswith("cuda")
    memory = "peak MB" if on_gpu else "MB kept for the backward"
    lines = [
        f"# {where}: {len(rows)} fusions, {len(rows[0].accuracy)} seeds",
        "",
        f"One protocol: regime {config['regime']}, preset {config['preset']}, {found['steps']:,} steps"
        f" of {config['batch_size']} samples. Selected on validation, measured once on {split}:"
        f" {found[split]['samples']:,} samples, {found['num_classes']} classes. Device: {found['device']},"
        f" torch {torch.__version__}. Time and memory are of batches of {TIMING_BATCH_SIZE}.",
        "",
        "Synaptic operations (SOPs) and the energy of arithmetic (0.9 pJ an addition, 4.6 pJ a MAC, 45 nm)"
        f" are of each fusion's first seed, counted on {rows[0].energy.samples:,} samples of {split}. Energy"
        " of memory traffic is not in it, and is far larger: `mj_with_memory` in table.csv.",
        "",
        f"| fusion | accuracy, % | weights | ms a sample | {memory} | SOPs, million | mJ a sample |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = "" if row.std is None else f" ± {100 * row.std:.2f}"
        lines.append(
            f"| {row.fusion} | {100 * row.mean:.2f}{spread} | {row.params:,} | {row.ms:.2f} |"
            f" {row.megabytes:.1f} | {row.energy.sops() / 1e6:,.2f} | {row.energy.millijoules():.4g} |"
        )
    lines += ["", "Mean ± sample standard deviation over seeds.", ""]
    return "\n".join(lines)
