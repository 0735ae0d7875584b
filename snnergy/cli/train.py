"""Commands that train: `train` and `compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from avdata.cli.console import print_line, show_progress
from avdata.cli.options import ConfigFile, DatasetPath, Json, Quiet, output_option
from snnergy.analysis.tables import show_comparison, show_result
from snnergy.cli.options import (
    BatchSize,
    Device,
    Epochs,
    Features,
    Fusion,
    Init,
    LearningRate,
    Logger,
    Model,
    Resume,
    RunOutput,
    Seed,
    Settings,
    Steps,
    Threads,
    TrainPreset,
    as_device,
    is_first_process,
    resolve_settings,
    show_settings,
)

running: list[Path] = []
"""Folder of the run in progress, for `resume_hint`."""


def resume_hint() -> str:
    """Return how an interrupted `train` continues."""
    from snnergy.training.checkpoint import RUN_FILE

    if not running or not (running[-1] / RUN_FILE).is_file():
        return "Nothing was saved yet: run the same command again"
    option = "" if "--resume" in sys.argv else " with --resume"
    return f"The run is saved in {running[-1]}: continue it with the same command{option}"


def train(
    dataset: DatasetPath,
    output: RunOutput = Path("run"),
    train_preset: TrainPreset = None,
    model: Model = None,
    fusion: Fusion = None,
    features: Features = None,
    init: Init = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = None,
    logger: Logger = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a network, save its best and last state, and evaluate it once on the test split.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m snnergy.cli train …
    """
    resolved = resolve_settings(
        train_preset, config, settings, resumed_run=output if resume else None, model=model, fusion=fusion,
        features=features, init=init, steps=steps, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed,
        threads=threads, logger=logger,
    )  # fmt: skip
    show_settings(resolved, quiet=quiet)
    from snnergy.training.trainer import train as run

    running.append(output)
    with show_progress(quiet=quiet or as_json) as progress:
        result = run(dataset, output, resolved, progress=progress, resume=resume, device=as_device(device))
    if not is_first_process():
        return
    show_result(result, as_json=as_json)
    if not as_json:
        print_line(
            f"{result['steps']:,} step{'s' * (result['steps'] != 1)} in {result['seconds']:.0f} s,"
            f" {result['params']:,} weights. Write a report with: snnergy report {output}"
        )


Protocol = Annotated[
    str,
    typer.Argument(metavar="PROTOCOL", help="Table to reproduce: {snnergy.analysis.protocols:PROTOCOLS}."),
]


def reproduce(
    protocol: Protocol,
    output: Annotated[Path, output_option("Write the dataset, the runs and the table to this directory.")],
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE", help="Read source files from this directory (default: download them)."
        ),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Use generated media and two steps, to test all parts.")
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train all cells of a table of the paper's protocol, on all GPUs; run again to resume."""
    from snnergy.analysis.protocols import PROTOCOLS
    from snnergy.analysis.reproduction import reproduce as run

    with show_progress(quiet=quiet or as_json) as progress:
        rows = run(protocol, output, source=source, smoke=smoke, device=as_device(device), progress=progress)
    show_comparison(rows, output, as_json=as_json)
    if not as_json:
        print_line(
            f"The paper reports {PROTOCOLS[protocol].reported} % for cmqka (arXiv 2602.00701); its code and"
            " most of its settings are not public."
        )


Fusions = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Train these fusions, separated by commas: {snnergy.fusion.registry:FUSIONS}"
        " (default: probe, cnn_concat, audio, video, concat, ccssa, cmqka).",
    ),
]

Seeds = Annotated[int, typer.Option(min=1, metavar="N", help="Train N runs per fusion.")]


def compare(
    dataset: DatasetPath,
    output: Annotated[Path, output_option("Write the table and its runs to this directory.")] = Path(
        "compare"
    ),
    fusions: Fusions = "",
    seeds: Seeds = 3,
    train_preset: TrainPreset = None,
    model: Model = None,
    steps: Steps = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train several fusions with the same settings over several seeds; run again to resume."""
    from snnergy.analysis.comparison import compare_fusions as run

    resolved = resolve_settings(
        train_preset, config, settings, model=model, steps=steps, epochs=epochs, threads=threads
    )
    show_settings(resolved, quiet=quiet)
    names = [name for name in fusions.split(",") if name]
    with show_progress(quiet=quiet or as_json) as progress:
        rows = run(
            dataset, output, resolved, fusions=names, seeds=seeds, device=as_device(device), progress=progress
        )
    show_comparison(rows, output, as_json=as_json)
