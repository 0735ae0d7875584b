"""The `snnergy` command: each subcommand parses its options, calls one public function and prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from avdata.cli.console import (
    print_json,
    print_line,
    print_note,
    print_page,
    print_table,
    run_command,
    show_progress,
)
from avdata.cli.options import (
    ConfigFile,
    DatasetPath,
    DatasetPathOrUrl,
    Json,
    OpenPage,
    Quiet,
    Silent,
    add_command,
    choice,
    create_app,
    output_option,
    settings_option,
)
from snnergy.analysis.tables import show_comparison, show_energy, show_result

if TYPE_CHECKING:
    from snnergy.training.config import TrainConfig

DEVICES = ("auto", "cpu", "cuda")

FEATURES = ("stored", "waveform")

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]

CheckpointPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Directory of a run, or a checkpoint in it.")
]

Device = Annotated[str, choice("--device", "snnergy.cli:DEVICES", "Device to compute on: {choices}.")]

TrainPreset = Annotated[
    str | None,
    choice(
        "--train-preset",
        "snnergy.training.config:TRAIN_PRESETS",
        "Training preset: {choices} (default: snnergy). quick: for a few hundred steps.",
    ),
]

Model = Annotated[
    str | None,
    choice(
        "--model",
        "snnergy.models.config:PRESETS",
        "Size of the network: {choices} (default: small). nano is for tests.",
    ),
]

Settings = Annotated[list[str] | None, settings_option("ema=0.999 or augment.flip=0")]

Steps = Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of optimizer steps.")]

Epochs = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of epochs, without --steps (default: 200)."),
]


BatchSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Samples per optimizer step, of all processes (default: 64)."),
]

LearningRate = Annotated[
    float | None,
    typer.Option("--lr", min=1e-9, metavar="RATE", help="Peak learning rate (default: 5e-4 per 64 samples)."),
]

Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="SEED", help="Seed of weights, order and augmentation (default: 42)."),
]


def train(
    dataset: DatasetPathOrUrl,
    output: Annotated[Path, output_option("Directory of the run.")] = Path("run"),
    train_preset: TrainPreset = None,
    model: Model = None,
    fusion: Annotated[
        str | None,
        choice(
            "--fusion", "snnergy.fusion.registry:FUSIONS", "Audio-visual fusion: {choices} (default: cmqka)."
        ),
    ] = None,
    features: Annotated[
        str | None,
        choice(
            "--features",
            "snnergy.cli:FEATURES",
            "Source of the mels: {choices} (default: stored). waveform: compute them on the device.",
        ),
    ] = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Resume from last.ckpt of the run.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a network, save its best and last state, and evaluate it once on the test split.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m snnergy.cli train …
    """
    from snnergy.training.trainer import train as run

    options = {
        "model": model, "fusion": fusion, "features": features, "steps": steps, "epochs": epochs,
        "batch_size": batch_size, "lr": lr, "seed": seed,
    }  # fmt: skip
    resolved = _resolve_config(output if resume else None, train_preset, config, options, settings or [])
    _show_settings(resolved, quiet=quiet)
    with show_progress(quiet=quiet or as_json) as progress:
        result = run(dataset, output, resolved, progress=progress, resume=resume, device=_device(device))
    if not _is_first_process():
        return
    show_result(result, as_json=as_json)
    if not as_json:
        print_line(
            f"{result['steps']:,} step{'s' * (result['steps'] != 1)} in {result['seconds']:.0f} s,"
            f" {result['params']:,} weights. Write a report with: snnergy report {output}"
        )


def _resolve_config(
    resumed_run: Path | None,
    train_preset: str | None,
    file: Path | None,
    options: dict[str, Any],
    settings: list[str],
) -> TrainConfig:
    """Return the settings of a preset or a resumed run, overridden by a file, options and `--set`."""
    from avdata.config.overrides import merge_overrides, parse_setting, read_config_file
    from snnergy.training.checkpoint import RUN_FILE, read_config
    from snnergy.training.config import parse, resolve_config

    named = {name: value for name, value in options.items() if value is not None}
    layers = [read_config_file(file) if file else {}, named, *map(parse_setting, settings)]
    if resumed_run is None or not (resumed_run / RUN_FILE).is_file():
        return resolve_config(train_preset, *layers)
    values = read_config(resumed_run)["config"]
    for layer in [{} if train_preset is None else {"train_preset": train_preset}, *layers]:
        values = merge_overrides(values, layer)
    return parse(values)


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _show_settings(config: TrainConfig, *, quiet: bool) -> None:
    if not quiet and _is_first_process():
        print_note(f"settings: {config.describe()}")


def _device(device: str) -> Literal["auto", "cpu", "cuda"]:
    return cast("Literal['auto', 'cpu', 'cuda']", device)


def evaluate(
    run: CheckpointPath,
    dataset: DatasetPathOrUrl,
    device: Device = "auto",
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Evaluate a trained network on the validation and test splits."""
    from snnergy.training.evaluation import CLASS_COLUMNS, class_table
    from snnergy.training.trainer import evaluate as measure

    result = measure(_checkpoint(run), dataset, device=_device(device))
    if quiet and not as_json:
        return
    show_result(result, as_json=as_json)
    if not as_json and "test" in result:
        print_table(CLASS_COLUMNS, class_table(result["test"]))


def _checkpoint(run: Path) -> Path:
    """Return the best checkpoint of a run, or its last one."""
    if not run.is_dir():
        return run
    best = run / "best.ckpt"
    return best if best.is_file() else run / "last.ckpt"


def compare(
    dataset: DatasetPathOrUrl,
    output: Annotated[Path, output_option("Directory of the table and its runs.")] = Path("compare"),
    fusions: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated fusions: {snnergy.fusion.registry:FUSIONS}"
            " (default: audio, video, concat, ccssa, cmqka).",
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of runs per fusion.")] = 3,
    train_preset: TrainPreset = None,
    model: Model = None,
    steps: Steps = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train several fusions with the same settings over several seeds; run again to resume."""
    from snnergy.analysis.comparison import compare_fusions as run

    options = {"model": model, "steps": steps, "epochs": epochs}
    resolved = _resolve_config(None, train_preset, config, options, settings or [])
    _show_settings(resolved, quiet=quiet)
    names = [name for name in fusions.split(",") if name]
    with show_progress(quiet=quiet or as_json) as progress:
        rows = run(
            dataset, output, resolved, fusions=names, seeds=seeds, device=_device(device), progress=progress
        )
    show_comparison(rows, output, as_json=as_json)


def report(
    run: RunPath,
    output: Annotated[Path | None, output_option("HTML file to write (default: RUN/report.html).")] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Prepared dataset, if it was moved since the training."),
    ] = None,
    show: OpenPage = False,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Write a report of a run: curves, confusion, classes, firing rates, energy and attention masks."""
    from snnergy.analysis.report import report as write

    path = write(run, output, dataset=dataset)
    print_page(path, as_json=as_json, quiet=quiet, show=show)


def energy(
    run: CheckpointPath,
    dataset: DatasetPath,
    batches: Annotated[int, typer.Option(min=1, metavar="N", help="Number of batches to measure.")] = 16,
    output: Annotated[
        Path | None, output_option("Bar chart to write (default: energy.png of the run).")
    ] = None,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Count the operations of a trained network on the test split (or val) and estimate its energy."""
    from dataclasses import asdict

    from snnergy.analysis.energy import measure_energy, plot_energy
    from snnergy.data import audio_video_batches, mel_transform, open_any_split
    from snnergy.training.checkpoint import load_network
    from snnergy.training.evaluation import match_dataset

    checkpoint = _checkpoint(run)
    network, config = load_network(checkpoint)
    data = open_any_split(dataset, ("test", "val"), features=config.features)
    facts, _ = match_dataset(network, data)
    loader = data.loader(config.batch_size, num_workers=0)
    measured = measure_energy(
        network, audio_video_batches(loader, batches, mel=mel_transform(data, facts=facts))
    )
    chart = output or checkpoint.parent / "energy.png"
    plot_energy(measured, chart)
    if as_json:
        totals = measured.totals()
        print_json(
            {
                "network": str(checkpoint),
                "dataset": str(dataset),
                "split": data.split,
                **asdict(measured),
                **totals,
            }
        )
    elif not quiet:
        show_energy(measured, checkpoint, f"{data.split} samples of {dataset}", chart)


app = create_app(
    "snnergy",
    "Train and analyze a spiking network with linear-cost cross-modal attention on datasets of avdata.",
    "avdata prepare synthetic -o data && snnergy train data --train-preset quick --steps 250 -o run",
)

add_command(
    app,
    train,
    "snnergy train out/cremad --model nano --steps 20 --batch-size 4 --output runs/cremad",
    summary="Train a network and evaluate it on the test split.",
)
add_command(app, evaluate, "snnergy evaluate runs/cremad out/cremad")
add_command(app, evaluate, "snnergy eval runs/cremad out/cremad", name="eval", hidden=True)
add_command(
    app,
    compare,
    "snnergy compare out/cremad --model nano --fusions audio,cmqka --steps 2 --seeds 1 -o table",
    summary="Train several fusions over several seeds.",
)
add_command(app, report, "snnergy report runs/cremad", summary="Write a report of a run (HTML).")
add_command(
    app,
    energy,
    "snnergy energy runs/cremad out/cremad",
    summary="Estimate the energy of a trained network by layer.",
)


def main() -> None:
    """Run the `snnergy` command."""
    run_command(app, "completed work is kept; run the same command again, with --resume for a training")


if __name__ == "__main__":
    main()
