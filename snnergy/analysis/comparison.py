"""Comparison of fusions over seeds: all trained with the same settings, summarized in one table.

Every run has its own folder. After an interruption the same command resumes the unfinished run and keeps
finished ones. The table contains own runs only, because published numbers come from other protocols.
"""

from __future__ import annotations

import csv
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

from avdata.errors import AvdataError, UsageError, redact_url
from avdata.progress import Progress
from avdata.storage.atomic import atomic_write
from avdata.storage.paths import local_path
from avdata.streaming.dataset import AVDataset
from snnergy.analysis.energy import Energy, measure_energy
from snnergy.analysis.parallel_runs import Job, gpu_names, train_on_gpus
from snnergy.data import Batch, MelTransform, audio_video_batches, batches, mel_transform, open_split
from snnergy.fusion.registry import FUSIONS
from snnergy.models.config import check_choice
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.training.checkpoint import (
    RUN_FILE,
    changed_settings,
    load_network,
    read_config,
    read_result,
)
from snnergy.training.config import TrainConfig
from snnergy.training.distributed import Device
from snnergy.training.epoch_lines import StageProgress
from snnergy.training.gradient_modulation import OGMGE
from snnergy.training.plots import plot_comparison
from snnergy.training.setup import build_network
from snnergy.training.trainer import train

DEFAULT_FUSIONS = ("probe", "cnn_concat", "audio", "video", "concat", "ccssa", "cmqka")
"""The smallest informative comparison: what is learned without a network and with an artificial one, each
modality alone, concatenation, quadratic and linear attention."""

TIMING_BATCH_SIZE, TIMING_ROUNDS = 8, 5

ENERGY_BATCHES = 16
"""Batches of eight samples for the energy estimate; firing rates converge with fewer."""


@dataclass(frozen=True, repr=False)
class Row:
    """Results of one fusion over all seeds.

    Attributes:
        fusion: name of the fusion.
        accuracy: accuracy of each seed on the test split.
        macro_f1: macro-averaged F1 of each seed.
        uar: unweighted average recall of each seed.
        params: number of weights.
        ms: minimum time to evaluate one sample in a batch of eight, in milliseconds: other processes only
            add to it.
        megabytes: memory of a training step of eight samples: the peak on a GPU, the tensors saved for the
            backward pass on the CPU.
        energy: energy of the first seed's network, on the split of `accuracy`.
    """

    fusion: str
    accuracy: tuple[float, ...]
    macro_f1: tuple[float, ...]
    uar: tuple[float, ...]
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
        raise UsageError(msg, hint="Run each training with snnergy train --output OUTPUT/runs/FUSION-seedN")
    chosen = list(dict.fromkeys(fusions)) or list(DEFAULT_FUSIONS)
    for name in chosen:
        check_choice(name, FUSIONS, "fusion")
    folder = local_path(output)
    cells = [
        config.model_copy(update={"fusion": name, "seed": config.seed + offset})
        for offset in range(seeds)
        for name in chosen
    ]
    _check(dataset, cells[: len(chosen)], [_run_folder(folder, cell) for cell in cells])
    if device != "cpu" and torch.cuda.device_count() > 1:
        _train_on_gpus(dataset, folder, cells, progress)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for cell in cells:
        stage = StageProgress(f"{cell.fusion} seed {cell.seed}", progress)
        results[cell.fusion].append(_train_or_resume(dataset, _run_folder(folder, cell), cell, device, stage))
    rows = _rows(dataset, folder, config, results)
    _write(folder, rows, results[chosen[0]][0], dataset)
    return rows


def _run_folder(folder: Path, cell: TrainConfig) -> Path:
    return folder / "runs" / f"{cell.fusion}-seed{cell.seed}"


def _rows(
    dataset: str | Path, folder: Path, config: TrainConfig, results: Mapping[str, list[dict[str, Any]]]
) -> list[Row]:
    """Measure the costs of each fusion's first network; return the rows of the table."""
    networks = {
        name: load_network(folder / "runs" / f"{name}-seed{config.seed}" / first["chosen"])[0]
        for name, (first, *_) in results.items()
    }
    first = next(iter(results.values()))[0]
    splits = {
        name: open_split(dataset, name, features=config.features, rank=0, world_size=1)
        for name in ("train", _split(first))
    }
    costs = _costs(networks, splits["train"], splits[_split(first)], torch.device(str(first["device"])))
    return [
        Row(
            name,
            _scores(measured, "accuracy"),
            _scores(measured, "macro_f1"),
            _scores(measured, "uar"),
            measured[0]["params"],
            *costs[name],
        )
        for name, measured in results.items()
    ]


def _check(dataset: str | Path, configs: Sequence[TrainConfig], runs: Sequence[Path]) -> None:
    """Check every fusion and existing run before the first training, which may take hours."""
    data = open_split(dataset, "train", features=configs[0].features, rank=0, world_size=1)
    if not {"val", "test"} & set(data.info["splits"]):
        msg = f"Dataset has neither a val nor a test split: {dataset}."
        raise AvdataError(msg, hint="Prepare it with another --split-by; avdata info lists them")
    for config in configs:
        # The meta device allocates no memory: building the network validates the settings.
        with torch.device("meta"):
            network = build_network(config, data)
            if config.ogm_ge:
                OGMGE(network, config.ogm_ge)
    for run in runs:
        if (run / RUN_FILE).is_file():
            # The path may contain another dataset than at the training.
            facts: DatasetFacts = read_config(run)["facts"]
            facts.check_equal(DatasetFacts.of(data.info, per_step=facts.per_step))


def _train_on_gpus(
    dataset: str | Path, folder: Path, cells: Sequence[TrainConfig], progress: Progress
) -> None:
    """Train all cells that are not finished, one on each GPU."""
    jobs = [Job(dataset, _run_folder(folder, cell), cell) for cell in cells]
    waiting = [job for job in jobs if not (job.run / "result.json").is_file()]
    gpus = gpu_names(torch.cuda.device_count())
    train_on_gpus(waiting, gpus, progress=lambda done, total: progress("trainings", done, total))


def _train_or_resume(
    dataset: str | Path, run: Path, config: TrainConfig, device: Device, progress: Progress
) -> dict[str, Any]:
    """Return the result of a run: start it, resume it, or read it if it has finished."""
    if not (run / "result.json").is_file():
        resume = (run / RUN_FILE).is_file()
        return train(dataset, run, config, device=device, progress=progress, resume=resume)
    stored = read_config(run)
    changed = changed_settings(stored["config"], config)
    if stored["dataset"] != redact_url(dataset):
        changed = f"dataset is {stored['dataset']}, requested {dataset}"
    if changed:
        msg = f"Settings differ from the run in {run}: {changed}."
        raise UsageError(msg, hint="Choose another --output for the comparison")
    return read_result(run)


def _scores(results: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, ...]:
    return tuple(float(result[_split(result)][metric]) for result in results)


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
            min(seconds[1:]) / TIMING_BATCH_SIZE * 1e3,
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


def paired_p_value(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the p-value of a two-sided paired t-test between two fusions with the same seeds.

    >>> round(paired_p_value([0.5, 0.625, 0.75], [0.5, 0.5, 0.5]), 4)
    0.2254

    Args:
        first: accuracy of each seed.
        second: accuracies of the same seeds.

    Returns:
        None if there are fewer than two seeds, or all differences are equal.
    """
    from scipy.stats import ttest_rel  # noqa: PLC0415  # slow import

    differences = {round(a - b, 12) for a, b in zip(first, second, strict=True)}
    return float(ttest_rel(first, second).pvalue) if len(differences) > 1 else None


def p_values(rows: Sequence[Row]) -> list[float | None]:
    """Return the p-value of each fusion against the one with the highest mean accuracy; None for that one."""
    best = max(rows, key=lambda row: row.mean)
    return [None if row is best else paired_p_value(row.accuracy, best.accuracy) for row in rows]


COLUMNS = (
    "fusion", "accuracy", "std", "p_value", "macro_f1", "uar", "seeds", "params", "ms_a_sample", "megabytes",
    "sops_exact", "sops_rate", "mj_exact", "mj_rate", "mj_reference", "mj_with_memory",
)  # fmt: skip


def _write(folder: Path, rows: Sequence[Row], result: Mapping[str, Any], dataset: str | Path) -> None:
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row, p_value in zip(rows, p_values(rows), strict=True):
            spread = ("" if value is None else f"{value:.6f}" for value in (row.std, p_value))
            means = (f"{statistics.fmean(values):.6f}" for values in (row.macro_f1, row.uar))
            cells = (f"{row.mean:.6f}", *spread, *means, len(row.accuracy), row.params, f"{row.ms:.4f}")
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
        f"# {redact_url(dataset)}: {len(rows)} fusions, {len(rows[0].accuracy)} seeds",
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
        f"| fusion | accuracy, % | p | macro-F1, % | UAR, % | weights | ms per sample | {memory} |"
        " SOPs, million | mJ per sample |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, p_value in zip(rows, p_values(rows), strict=True):
        spread = "" if row.std is None else f" ± {100 * row.std:.2f}"
        significance = "–" if p_value is None else f"{p_value:.3f}"
        scores = " | ".join(f"{100 * statistics.fmean(values):.2f}" for values in (row.macro_f1, row.uar))
        lines.append(
            f"| {row.fusion} | {100 * row.mean:.2f}{spread} | {significance} | {scores} | {row.params:,} |"
            f" {row.ms:.2f} | {row.megabytes:.1f} | {row.energy.sops() / 1e6:,.2f} |"
            f" {row.energy.millijoules():.4g} |"
        )
    lines += [
        "",
        "Mean ± sample standard deviation over seeds. p: two-sided paired t-test over seeds against the row"
        " with the highest mean accuracy. Time: the minimum of five rounds. UAR: unweighted average recall.",
        "",
    ]
    return "\n".join(lines)
