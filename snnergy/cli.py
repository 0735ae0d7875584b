"""The `snnergy` command: each subcommand parses its options, calls one public function and prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from avdata.cli.console import (
    format_count,
    print_json,
    print_line,
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

if TYPE_CHECKING:
    from snnergy.analysis.comparison import Row
    from snnergy.analysis.energy import Energy, Layer
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
        "Training preset: {choices} (default: snnergy; with --steps, quick).",
    ),
]

Model = Annotated[
    str | None,
    choice("--model", "snnergy.models.config:PRESETS", "Size of the network: {choices} (default: nano)."),
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
    with show_progress(quiet=quiet or as_json) as progress:
        result = run(dataset, output, resolved, progress=progress, resume=resume, device=_device(device))
    if int(os.environ.get("RANK", "0")):
        return
    _show_result(result, as_json=as_json)
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
    from snnergy.training.checkpoint import read_config
    from snnergy.training.config import parse, resolve_config

    named = {name: value for name, value in options.items() if value is not None}
    layers = [read_config_file(file) if file else {}, named, *map(parse_setting, settings)]
    if resumed_run is None or not (resumed_run / "config.json").is_file():
        return resolve_config(train_preset, *layers)
    values = read_config(resumed_run)["config"]
    for layer in [{} if train_preset is None else {"train_preset": train_preset}, *layers]:
        values = merge_overrides(values, layer)
    return parse(values)


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
    _show_result(result, as_json=as_json)
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
    names = [name for name in fusions.split(",") if name]
    with show_progress(quiet=quiet or as_json) as progress:
        rows = run(
            dataset, output, resolved, fusions=names, seeds=seeds, device=_device(device), progress=progress
        )
    _show_comparison(rows, output, as_json=as_json)


def _show_comparison(rows: list[Row], output: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json(
            [{**asdict(row), "mean": row.mean, "std": row.std, "energy": row.energy.totals()} for row in rows]
        )
        return
    cells = [
        (
            row.fusion, f"{row.mean:.4f}", "–" if row.std is None else f"{row.std:.4f}", f"{row.params:,}",
            f"{row.ms:.2f}", f"{row.megabytes:.1f}", f"{row.energy.sops() / 1e6:.2f}",
            f"{row.energy.millijoules():.3g}",
        )
        for row in rows
    ]  # fmt: skip
    print_table(("fusion", "accuracy", "std", "weights", "ms per sample", "MB", "MSOPs", "mJ"), cells)
    print_line(f"Wrote {output / 'table.md'}, table.csv and table.png. The runs are in {output / 'runs'}.")


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


def _show_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    measured = {split: result[split] for split in ("val", "test") if split in result}
    rows = [
        (split, f"{metrics['accuracy']:.4f}", f"{metrics['loss']:.4f}", f"{metrics['samples']:,}")
        for split, metrics in measured.items()
    ]
    if not rows:
        print_line("nothing was evaluated: the dataset has neither a val nor a test split")
        return
    print_table(("split", "accuracy", "loss", "samples"), rows)


def energy(
    run: CheckpointPath,
    dataset: DatasetPath,
    batches: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of batches of the test split to measure.")
    ] = 16,
    output: Annotated[
        Path | None, output_option("Bar chart to write (default: energy.png of the run).")
    ] = None,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Count the operations of a trained network on the test split and estimate its energy."""
    from dataclasses import asdict

    from snnergy.analysis.energy import measure_energy, plot_energy
    from snnergy.data import audio_video_batches, open_split, waveform_mel
    from snnergy.training.checkpoint import load_network
    from snnergy.training.evaluation import check_compatible

    checkpoint = _checkpoint(run)
    network, config = load_network(checkpoint)
    data = open_split(dataset, "test", features=config.features)
    check_compatible(network, data)
    loader = data.loader(config.batch_size, num_workers=0)
    measured = measure_energy(network, audio_video_batches(loader, batches, mel=waveform_mel(data)))
    chart = output or checkpoint.parent / "energy.png"
    plot_energy(measured, chart)
    if as_json:
        totals = measured.totals()
        print_json({"network": str(checkpoint), "dataset": str(dataset), **asdict(measured), **totals})
    elif not quiet:
        _show_energy(measured, checkpoint, dataset, chart)


def _show_energy(measured: Energy, checkpoint: Path, dataset: Path, chart: Path) -> None:
    totals = measured.totals()
    print_table(
        ("layer", "rate", "MACs", "SOPs by rate", "exact", "mJ"), [_row(layer) for layer in measured.layers]
    )
    print_line(
        f"{totals['mj_exact']:.4g} mJ per sample ({totals['mj_rate']:.4g} by rate); the same network without"
        f" spikes: {totals['mj_reference']:.4g} mJ; with memory traffic: {totals['mj_with_memory']:.4g} mJ"
    )
    print_line(
        f"not included: {measured.attention:,.0f} additions of attention, {measured.updates:,.0f} membrane"
        f" updates; see {chart}"
    )
    print_line(
        f"firing rates of {checkpoint} on {measured.samples:,} test samples of {dataset},"
        f" T = {measured.steps:g}"
    )


_REDUNDANT = frozenset({"encoders", "embedding", "attention", "message", "layers", "conv"})
"""Parts of a layer's path that do not distinguish it, left out to fit a terminal's line."""


def _row(layer: Layer) -> tuple[str, ...]:
    name = ".".join(part for part in layer.name.split(".") if part not in _REDUNDANT)
    # A layer with real-valued input has no spikes: it multiplies.
    counts = (
        (
            f"{layer.rate:.4f}",
            format_count(layer.macs),
            format_count(layer.sops_rate),
            format_count(layer.sops_exact),
        )
        if layer.spiking
        else ("–", format_count(layer.macs), "–", "–")
    )
    return (name, *counts, f"{layer.millijoules:.2e}")


app = create_app(
    "snnergy",
    "Train and analyze a spiking network with linear-cost cross-modal attention on datasets of avdata.",
    "avdata prepare synthetic -o data && snnergy train data --steps 250 -o run",
)

add_command(
    app,
    train,
    "snnergy train out/cremad --steps 20 --batch-size 4 --output runs/cremad",
    summary="Train a network and evaluate it on the test split.",
)
add_command(app, evaluate, "snnergy evaluate runs/cremad out/cremad")
add_command(app, evaluate, "snnergy eval runs/cremad out/cremad", name="eval", hidden=True)
add_command(
    app,
    compare,
    "snnergy compare out/cremad --fusions audio,cmqka --steps 2 --seeds 1 -o table",
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
