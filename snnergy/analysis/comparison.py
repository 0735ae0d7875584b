"""Comparison of fusions over seeds: all trained with the same settings, summarized in one table.

Every run has its own folder. After an interruption the same command resumes the unfinished run and keeps
finished ones. The table contains own runs only, because published numbers come from other protocols.
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
from avdata.streaming.dataset import AVDataset
from snnergy.analysis.energy import Energy, measure_energy
from snnergy.data import Batch, MelTransform, audio_video_batches, batches, mel_transform, open_split
from snnergy.fusion.registry import FUSIONS
from snnergy.models.config import check_choice
from snnergy.models.network import SNNergy
from snnergy.training.checkpoint import RUN_FILE, changed_settings, load_network, read_config
from snnergy.training.config import TrainConfig
from snnergy.training.distributed import Device
from snnergy.training.gradient_modulation import OGMGE
from snnergy.training.plots import plot_comparison
from snnergy.training.setup import build_network
from snnergy.training.trainer import train

DEFAULT_FUSIONS = ("audio", "video", "concat", "ccssa", "cmqka")
"""The smallest informative comparison: each modality alone, concatenation, quadratic and linear attention."""

TIMING_BATCH_SIZE, TIMING_ROUNDS = 8, 5

ENERGY_BATCHES = 16
"""Batches of eight samples for the energy estimate; firing rates converge with fewer."""


@dataclass(frozen=True, repr=False)
class Row:
    """Results of one fusion over all seeds.

    Attributes:
        fusion: name of the fusion.
        accuracy: accuracy of each seed on the test split.
        params: number of weights.
        ms: median time to evaluate one sample in a batch of eight, in milliseconds.
        megabytes: memory of a training step of eight samples: the peak on a GPU, the tensors saved for the
            backward pass on the CPU.
        energy: energy of the first seed's network, on the split of `accuracy`.
    """

    fusion: str
    accuracy: tuple[float, ...]
    params: int
    ms: float
    megabytes: float
    energy: Energy

    def __repr__(self) -> str:
        """Return the results on one line."""
        return (
            f"Row({self.fusion!r}, accuracy {self.mean:.4f} over {len(self.accuracy)} seeds,"
            f" {self.params:,} weights, {self.ms:.2f} ms, {self.megabytes:.1f} MB,"
            f" {self.energy.millijoules():.3g} mJ)"
        )

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
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
    """Train every fusion with every seed and write `table.md`, `table.csv` and `table.png`.

    Args:
        dataset: folder or URL of the prepared dataset.
        output: folder of the table; the runs are in its subfolder `runs`.
        config: settings of all runs; fusion and seed are replaced.
        fusions: names of `FUSIONS`; empty: `DEFAULT_FUSIONS`.
        seeds: number of seeds, starting at the seed of `config`.
        device: `auto` uses a GPU if there is one.
        progress: called as (`FUSION seed N`, done, total), in optimizer steps.

    Returns:
        One row per fusion, in the order of `fusions`.

    Raises:
        UsageError: unknown name, a fusion contradicts the settings, or a run in `output` has other settings.
        AvdataError: the dataset has neither a val nor a test split, or a training failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        msg = "A comparison runs in one process, but torchrun started several."
        raise UsageError(msg, hint="run each training with snnergy train --output OUTPUT/runs/FUSION-seedN")
    chosen = list(dict.fromkeys(fusions)) or list(DEFAULT_FUSIONS)
    for name in chosen:
        check_choice(name, FUSIONS, "fusion")
    _check(dataset, [config.model_copy(update={"fusion": name}) for name in chosen])
    folder = Path(output)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for offset in range(seeds):
        for name in chosen:
            settings = config.model_copy(update={"fusion": name, "seed": config.seed + offset})
            run = folder / "runs" / f"{name}-seed{settings.seed}"
            stage = f"{name} seed {settings.seed}"
            result = _train_or_resume(dataset, run, settings, device, _prefix_progress(stage, progress))
            results[name].append(result)
    networks = {
        name: load_network(folder / "runs" / f"{name}-seed{config.seed}" / results[name][0]["chosen"])[0]
        for name in chosen
    }
    first = results[chosen[0]][0]
    splits = {
        name: open_split(dataset, name, features=config.features, rank=0, world_size=1)
        for name in ("train", _split(first))
    }
    costs = _costs(networks, splits["train"], splits[_split(first)], torch.device(str(first["device"])))
    rows = [
        Row(
            name,
            tuple(_accuracy(result) for result in results[name]),
            results[name][0]["params"],
            *costs[name],
        )
        for name in chosen
    ]
    _write(folder, rows, first, dataset)
    return rows


def _check(dataset: str | Path, configs: Sequence[TrainConfig]) -> None:
    """Check every fusion before the first training, which may take hours."""
    data = open_split(dataset, "train", features=configs[0].features, rank=0, world_size=1)
    if not {"val", "test"} & set(data.info["splits"]):
        msg = f"Dataset has neither a val nor a test split: {dataset}."
        raise AvdataError(msg, hint="prepare it with another --split-by; avdata info lists them")
    for config in configs:
        # The meta device allocates no memory: building the network validates the settings.
        with torch.device("meta"):
            network = build_network(config, data)
            if config.ogm_ge:
                OGMGE(network, config.ogm_ge)


def _prefix_progress(stage: str, progress: Progress) -> Progress:
    return lambda _, done, steps: progress(stage, done, steps)


def _train_or_resume(
    dataset: str | Path, run: Path, config: TrainConfig, device: Device, progress: Progress
) -> dict[str, Any]:
    """Return the result of a run: start it, resume it, or read it if it has finished."""
    finished = run / "result.json"
    if not finished.is_file():
        resume = (run / RUN_FILE).is_file()
        return train(dataset, run, config, device=device, progress=progress, resume=resume)
    stored = read_config(run)
    changed = changed_settings(stored["config"], config)
    if stored["dataset"] != str(dataset):
        changed = f"dataset is {stored['dataset']}, requested {dataset}"
    if changed:
        msg = f"Settings differ from the run in {run}: {changed}."
        raise UsageError(msg, hint="choose another --output for the comparison")
    result: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return result


def _accuracy(result: Mapping[str, Any]) -> float:
    return float(result[_split(result)]["accuracy"])


def _split(result: Mapping[str, Any]) -> str:
    return "test" if "test" in result else "val"


def _costs(
    networks: Mapping[str, SNNergy], train_data: AVDataset, data: AVDataset, device: torch.device
) -> dict[str, tuple[float, float, Energy]]:
    """Return ms per sample, MB and energy of each network; the networks are timed alternately."""
    mel = mel_transform(data, device)
    (batch,) = batches(train_data.loader(TIMING_BATCH_SIZE, num_workers=0), 1, device, mel)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(TIMING_ROUNDS + 1):
        for name, network in networks.items():
            times[name].append(_seconds(network.to(device).eval(), batch))
    # The training step changes batch norm statistics and thereby firing rates, so it must come last.
    energies = {name: _energy(network, data, mel, device) for name, network in networks.items()}
    return {
        # The first round is a warm-up.
        name: (
            statistics.median(seconds[1:]) / TIMING_BATCH_SIZE * 1e3,
            training_bytes(networks[name], batch) / 1e6,
            energies[name],
        )
        for name, seconds in times.items()
    }


def _energy(network: SNNergy, data: AVDataset, mel: MelTransform | None, device: torch.device) -> Energy:
    loader = data.loader(TIMING_BATCH_SIZE, num_workers=0)
    return measure_energy(network, audio_video_batches(loader, ENERGY_BATCHES, device, mel))


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
    """Return the memory in bytes that a training step needs in addition to the weights.

    On a GPU this is the peak of allocated memory. The CPU allocator has no such statistics; there it is the
    size of the tensors that the forward pass saves for the backward pass, each storage counted once.
    """
    network.train()
    if batch.audio.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        functional.cross_entropy(network(batch.audio, batch.video), batch.label).backward()
        network.zero_grad()
        return torch.cuda.max_memory_allocated() - before
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    sizes: dict[int, int] = {}
    saved: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            # Keep the tensor alive, so that no other storage gets its address.
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        network(batch.audio, batch.video)
    return sum(sizes.values())


COLUMNS = (
    "fusion", "accuracy", "std", "seeds", "params", "ms_a_sample", "megabytes",
    "sops_exact", "sops_rate", "mj_exact", "mj_rate", "mj_reference", "mj_with_memory",
)  # fmt: skip


def _write(folder: Path, rows: Sequence[Row], result: Mapping[str, Any], dataset: str | Path) -> None:
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            std = "" if row.std is None else f"{row.std:.6f}"
            cells = (f"{row.mean:.6f}", std, len(row.accuracy), row.params, f"{row.ms:.4f}")
            totals = (f"{value:.9g}" for value in row.energy.totals().values())
            writer.writerow((row.fusion, *cells, f"{row.megabytes:.3f}", *totals))
    atomic_write(folder / "table.md", _markdown(rows, result, dataset).encode())
    plot_comparison(
        [(row.fusion, row.accuracy, row.energy.millijoules()) for row in rows],
        1 / result["num_classes"],
        folder / "table.png",
    )


def _markdown(rows: Sequence[Row], result: Mapping[str, Any], dataset: str | Path) -> str:
    config, split = result["config"], _split(result)
    on_gpu = str(result["device"]).startswith("cuda")
    memory = "peak MB" if on_gpu else "MB saved for the backward pass"
    lines = [
        f"# {dataset}: {len(rows)} fusions, {len(rows[0].accuracy)} seeds",
        "",
        f"Same settings for all: training preset {config['train_preset']}, model {config['model']},"
        f" {result['steps']:,} steps of {config['batch_size']} samples. Selected on validation, evaluated"
        f" once on {split}: {result[split]['samples']:,} samples, {result['num_classes']} classes."
        f" Device: {result['device']}, torch {torch.__version__}. Time and memory for batches of"
        f" {TIMING_BATCH_SIZE}.",
        "",
        "Synaptic operations (SOPs) and energy of arithmetic (0.9 pJ per addition, 4.6 pJ per MAC, 45 nm)"
        f" are those of each fusion's first seed, counted on {rows[0].energy.samples:,} samples of {split}."
        " Energy of memory traffic is not included and much larger: `mj_with_memory` in table.csv.",
        "",
        f"| fusion | accuracy, % | weights | ms per sample | {memory} | SOPs, million | mJ per sample |",
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
