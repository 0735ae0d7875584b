"""Arguments and options that several commands share, and the settings that result from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from avdata.cli.console import print_note
from avdata.cli.options import choice, output_option, settings_option

if TYPE_CHECKING:
    from snnergy.training.config import TrainConfig

DEVICES = ("auto", "cpu", "cuda")

FEATURES = ("stored", "waveform")

RunPaths = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Directory of a run; several are compared.")
]

CheckpointPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Directory of a run, or a checkpoint in it.")
]

TrainedNetwork = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Directory of a run, a checkpoint, a folder of save_pretrained, or user/repo on the Hub.",
    ),
]

RunOutput = Annotated[Path, output_option("Write the run to this directory.")]

Device = Annotated[
    str, choice("--device", "snnergy.cli.options:DEVICES", "Compute on this device: {choices}.")
]

TrainPreset = Annotated[
    str | None,
    choice(
        "--train-preset",
        "snnergy.training.config:TRAIN_PRESETS",
        "Start from a training preset: {choices} (default: snnergy). quick: for a few hundred steps.",
    ),
]

Model = Annotated[
    str | None,
    choice(
        "--model",
        "snnergy.models.config:PRESETS",
        "Build a network of this size: {choices} (default: small). nano is for tests.",
    ),
]

Fusion = Annotated[
    str | None,
    choice(
        "--fusion", "snnergy.fusion.registry:FUSIONS", "Fuse audio and video by: {choices} (default: cmqka)."
    ),
]

Features = Annotated[
    str | None,
    choice(
        "--features",
        "snnergy.cli.options:FEATURES",
        "Take mels from: {choices} (default: stored). waveform: compute them on the device.",
    ),
]

Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="NETWORK",
        help="Start from the weights of a trained network: a run, a checkpoint, a folder of save_pretrained,"
        " or user/repo on the Hub, also with other classes (default: none).",
    ),
]

Settings = Annotated[list[str] | None, settings_option("ema=0.999 or augment.flip=0")]

Steps = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Take N optimizer steps (default: those of --epochs).")
]

Epochs = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Train N epochs, without --steps (default: 200)."),
]

BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Use N samples per optimizer step, of all processes (default: 64)."
    ),
]

LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr", min=1e-9, metavar="RATE", help="Set the peak learning rate (default: 5e-4 per 64 samples)."
    ),
]

Seed = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="SEED", help="Set the seed of weights, order and augmentation (default: 42)."
    ),
]

Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Use N threads on the CPU (default: the idle cores)."),
]

Logger = Annotated[
    str | None,
    choice(
        "--logger",
        "snnergy.training.config:TrainConfig.logger",
        "Log to this logger of Lightning besides TensorBoard: {choices} (default: none).",
    ),
]

Resume = Annotated[bool, typer.Option("--resume", help="Resume from last.ckpt of the run.")]


def resolve_settings(
    train_preset: str | None,
    file: Path | None,
    settings: list[str] | None,
    *,
    resumed_run: Path | None = None,
    **options: Any,
) -> TrainConfig:
    """Return the settings of a preset or a resumed run, overridden by a file, options and `--set`."""
    from avdata.config.overrides import merge_overrides, parse_setting, read_config_file
    from snnergy.training.config import parse, resolve_config

    named = {name: value for name, value in options.items() if value is not None}
    layers = [read_config_file(file) if file else {}, named, *map(parse_setting, settings or [])]
    if resumed_run is None:  # without torch, whose import takes seconds
        return resolve_config(train_preset, *layers)
    from snnergy.training.checkpoint import RUN_FILE, read_config

    if not (resumed_run / RUN_FILE).is_file():
        return resolve_config(train_preset, *layers)
    values = read_config(resumed_run)["config"]
    for layer in [{} if train_preset is None else {"train_preset": train_preset}, *layers]:
        values = merge_overrides(values, layer)
    return parse(values)


def show_settings(config: TrainConfig, *, quiet: bool) -> None:
    """Print all settings on one line of stderr."""
    if not quiet and is_first_process():
        print_note(f"settings: {config.describe()}")


def is_first_process() -> bool:
    """Return whether this process prints the results of a run."""
    return int(os.environ.get("RANK", "0")) == 0


def as_device(device: str) -> Literal["auto", "cpu", "cuda"]:
    """Return the value of `--device`, which `Device` has checked."""
    return cast("Literal['auto', 'cpu', 'cuda']", device)


def find_checkpoint(run: Path) -> Path:
    """Return the best checkpoint of a run, or its last one; a checkpoint itself is returned unchanged."""
    if not run.is_dir():
        return run
    best = run / "best.ckpt"
    return best if best.is_file() else run / "last.ckpt"
