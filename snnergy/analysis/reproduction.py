"""Reproduction of a table of the paper's protocol: preparation, trainings, costs and the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import avdata
from avdata.errors import UsageError
from avdata.progress import Progress, print_progress
from avdata.storage.paths import local_path
from snnergy.analysis.comparison import Row, compare_fusions
from snnergy.analysis.energy import measure_energy
from snnergy.analysis.protocols import PROTOCOLS, SMOKE
from snnergy.data import audio_video_batches, mel_transform, open_split
from snnergy.models.config import check_choice
from snnergy.training.config import TrainConfig, resolve_config
from snnergy.training.distributed import Device
from snnergy.training.setup import build_network

FLOPS_PER_MAC = 2

BACKWARD_COST = 2
"""A backward pass computes gradients of inputs and weights: twice the operations of a forward pass."""


def reproduce(
    name: str,
    output: str | Path,
    *,
    source: str | Path | None = None,
    smoke: bool = False,
    device: Device = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> list[Row]:
    """Prepare the dataset of a protocol, train all its cells and write their table. A second call resumes.

    Args:
        name: one of `PROTOCOLS`.
        output: folder of the dataset (`data`), the runs and the table.
        source: folder of the source files; None: download those that can be downloaded.
        smoke: use the mock of the dataset, a tiny network, two steps and one seed: a test of all parts.
        device: `auto` uses all GPUs, one training on each.
        progress: as for `prepare` and `compare_fusions`.

    Returns:
        One row per fusion.

    Raises:
        UsageError: unknown name, or `source` together with `smoke`.
        AvdataError: the dataset cannot be prepared, or a training failed.
    """
    check_choice(name, PROTOCOLS, "protocol")
    protocol, folder = PROTOCOLS[name], local_path(output)
    preparation = protocol.preparation
    if smoke:
        if source is not None:
            msg = "--smoke generates its own source files."
            raise UsageError(msg, hint="Omit --source, or --smoke")
        source = folder / "mock"
        if not source.exists():
            avdata.mock(protocol.recipe, source, clips=protocol.smoke_clips)
        preparation = {**preparation, "video": {"size": 32}}
    # Returns at once if it is complete.
    avdata.prepare(
        protocol.recipe, source=source, output=folder / "data", preset=protocol.preset, config=preparation,
        workers=1 if smoke else torch.get_num_threads(), max_quarantine=0.5 if smoke else 0.05,
        progress=progress,
    )  # fmt: skip
    config = resolve_config(None, SMOKE if smoke else protocol.training)
    seeds = 1 if smoke else protocol.seeds
    print_progress(progress, describe_cost(folder / "data", config, protocol.fusions, seeds))
    return compare_fusions(
        folder / "data", folder, config, fusions=protocol.fusions, seeds=seeds, device=device,
        progress=progress,
    )  # fmt: skip


def describe_cost(dataset: str | Path, config: TrainConfig, fusions: Sequence[str], seeds: int) -> str:
    """Return the number of trainings and their floating-point operations, counted on one sample."""
    operations = {
        name: training_flops(dataset, config.model_copy(update={"fusion": name})) for name in fusions
    }
    total = seeds * sum(operations.values())
    return (
        f"{seeds * len(fusions)} trainings, at most {total:.2g} floating-point operations in all"
        f" ({total / 1e13 / 3600:.2g} hours of one GPU at 10 TFLOP/s); early stopping needs fewer"
    )


def training_flops(dataset: str | Path, config: TrainConfig) -> float:
    """Return the operations of convolutions and matrix products in a training, without evaluations.

    They are those of a dense network: GPUs do not skip zeros, although spikes are sparse.
    """
    data = open_split(dataset, "train", features=config.features, rank=0, world_size=1)
    network = build_network(config, data).eval()
    loader = data.loader(1, num_workers=0)
    energy = measure_energy(network, audio_video_batches(loader, 1, mel=mel_transform(data)))
    macs = sum(layer.macs for layer in energy.layers)
    samples = config.steps * config.batch_size if config.steps else config.epochs * data.num_samples
    return FLOPS_PER_MAC * macs * (1 + BACKWARD_COST) * samples
