"""The command about energy: `snnergy energy`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from avdata.cli.console import (
    Version,
    format_count,
    print_json,
    print_line,
    print_table,
    run_command,
    show_progress,
)

if TYPE_CHECKING:
    from snnergy.analysis.energy import Layer
    from snnergy.training.config import TrainConfig

app = typer.Typer(
    name="snnergy",
    help="A spiking network with linear-cost cross-modal attention, trained on sets prepared by avdata.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps:  avdata prepare synthetic --out set && snnergy train set --steps 250 --out run",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.callback()
def _options(
    version: Version = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["AVDATA_DEBUG"] = "1"


@app.command(
    short_help="Train a network and evaluate it once on the test split.",
    epilog="Example:  snnergy train out/cremad --steps 20 --batch-size 4 --out runs/cremad",
)
def train(
    prepared: Annotated[Path, typer.Argument(help="Folder or URL of a prepared set.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run"),
    regime: Annotated[
        str | None, typer.Option(help="snnergy (default), quick (with --steps), la, mm: see docs.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Size: nano (default), tiny, small, base, large, or paper_like, our reconstruction."
        ),
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(help="cmqka (default), its variants, or what it is compared with.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, without --steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(min=1e-9, help="Peak of the learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as ema=0.999 or augment.flip=0.")
    ] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last.ckpt.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network, keep its best and last state, and evaluate it once on the test split.

    On many GPUs or machines: torchrun --nproc-per-node 8 -m snnergy.cli train …
    """
    from snnergy.training.trainer import train as run

    given = {
        "model": preset, "fusion": fusion, "steps": steps, "epochs": epochs, "batch_size": batch_size,
        "lr": lr, "seed": seed,
    }  # fmt: skip
    short = {name: value for name, value in given.items() if value is not None}
    settled = _resolve_config(out if resume else None, regime, config, short, settings or [])
    with show_progress(quiet=quiet or as_json) as progress:
        result = run(prepared, out, settled, progress=progress, resume=resume, device=_device(device))
    if int(os.environ.get("RANK", "0")):
        return
    _show(result, as_json=as_json)
    if not as_json:
        print_line(
            f"{result['steps']:,} step{'s' * (result['steps'] != 1)} in {result['seconds']:.0f} s,"
            f" {result['params']:,} weights; look at it with: snnergy report {out}"
        )


def _resolve_config(
    resumed: Path | None, regime: str | None, file: Path | None, short: dict[str, Any], settings: list[str]
) -> TrainConfig:
    """A file's settings under the options under --set; below all, the regime or the resumed run's own."""
    from avdata.config.overrides import merge_overrides, parse_setting, read_config_file
    from snnergy.training.checkpoint import read_config
    from snnergy.training.config import parse, resolve_config

    layers = [read_config_file(file) if file else {}, short, *map(parse_setting, settings)]
    if resumed is None or not (resumed / "config.json").is_file():
        return resolve_config(regime, *layers)
    settled = read_config(resumed)["config"]
    for layer in [{} if regime is None else {"train_preset": regime}, *layers]:
        settled = merge_overrides(settled, layer)
    return parse(settled)


def _device(device: str) -> Literal["auto", "cpu", "cuda"]:
    from avdata.errors import UsageError

    for known in ("auto", "cpu", "cuda"):
        if device == known:
            return known
    msg = f"--device {device!r}: it is auto, cpu or cuda"
    raise UsageError(msg)


@app.command(name="eval", epilog="Example:  snnergy eval runs/cremad out/cremad")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint in it.")],
    prepared: Annotated[Path, typer.Argument(help="Folder or URL of a prepared set.")],
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: Json = False,
) -> None:
    """Evaluate a trained network on the validation and test splits."""
    from snnergy.training.evaluation import CLASS_COLUMNS, class_table
    from snnergy.training.trainer import evaluate as measure

    best = run / "best.ckpt"
    checkpoint = (best if best.is_file() else run / "last.ckpt") if run.is_dir() else run
    result = measure(checkpoint, prepared, device=_device(device))
    if quiet and not as_json:
        return
    _show(result, as_json=as_json)
    if not as_json and "test" in result:
        print_table(CLASS_COLUMNS, class_table(result["test"], result["labels"]))


@app.command(
    short_help="Train fusions by one protocol over several seeds.",
    epilog="Example:  snnergy compare out/cremad --fusions audio,cmqka --steps 2 --seeds 1 --out table",
)
def compare(
    prepared: Annotated[Path, typer.Argument(help="Folder or URL of a prepared set.")],
    out: Annotated[Path, typer.Option(help="Folder of the table and its runs.")] = Path("compare"),
    fusions: Annotated[
        str, typer.Option(help="Names with commas; audio,video,concat,ccssa,cmqka without.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 3,
    regime: Annotated[str | None, typer.Option(help="As of `snnergy train`.")] = None,
    preset: Annotated[str | None, typer.Option(help="As of `snnergy train`.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of each.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each, without --steps.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="One setting.")] = None,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Train fusions by one protocol over several seeds; interrupted, the same command goes on."""
    from dataclasses import asdict

    from snnergy.analysis.comparison import compare_fusions as run

    given = {"model": preset, "steps": steps, "epochs": epochs}
    short = {name: value for name, value in given.items() if value is not None}
    settled = _resolve_config(None, regime, config, short, settings or [])
    chosen = [name for name in fusions.split(",") if name]
    with show_progress(quiet=quiet or as_json) as progress:
        rows = run(
            prepared, out, settled, fusions=chosen, seeds=seeds, device=_device(device), progress=progress
        )
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
    print_table(("fusion", "accuracy", "std", "weights", "ms a sample", "MB", "MSOPs", "mJ"), cells)
    print_line(f"{out / 'table.md'}, table.csv and table.png are written; the runs are in {out / 'runs'}")


@app.command(short_help="Write one page that shows a run.", epilog="Example:  snnergy report runs/cremad")
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    page: Annotated[Path | None, typer.Option("--to", help="The page; RUN/report.html without.")] = None,
    prepared: Annotated[Path | None, typer.Option("--on", help="The prepared set, where it moved.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: Json = False,
) -> None:
    """Write one page that shows a run: curves, confusion, classes, firing rates, and masks on samples."""
    from snnergy.analysis.report import report as write

    path = write(run, page, dataset=prepared)
    if as_json:
        print_json({"page": str(path), "bytes": path.stat().st_size})
    elif not quiet:
        print_line(f"{path} is written; it needs no network")
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    measured = {split: result[split] for split in ("val", "test") if split in result}
    rows = [
        (split, f"{held['accuracy']:.4f}", f"{held['loss']:.4f}", f"{held['samples']:,}")
        for split, held in measured.items()
    ]
    if not rows:
        print_line("the set has neither a val nor a test split: nothing was measured")
        return
    print_table(("split", "accuracy", "loss", "samples"), rows)


_PLAIN = frozenset({"encoders", "embedding", "attention", "message", "layers", "conv"})
"""Parts of a layer's path that tell it from no other, and would not fit on a terminal's line."""


@app.command(
    short_help="Estimate a trained network's energy, layer by layer.",
    epilog="Example:  snnergy energy runs/cremad out/cremad",
)
def energy(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint in it.")],
    prepared: Annotated[Path, typer.Argument(help="Folder of a prepared set; its test split is used.")],
    batches: Annotated[int, typer.Option(min=1, help="Batches to measure on.")] = 16,
    out: Annotated[Path | None, typer.Option(help="The bar chart; the run's energy.png without.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Count a trained network's operations on the test split, layer by layer, and estimate its energy."""
    from dataclasses import asdict

    from snnergy.analysis.energy import measure_energy, plot_energy
    from snnergy.data import audio_video_batches, open_split
    from snnergy.training.checkpoint import load_network
    from snnergy.training.evaluation import check_compatible

    best = run / "best.ckpt"
    checkpoint = (best if best.is_file() else run / "last.ckpt") if run.is_dir() else run
    network, config = load_network(checkpoint)
    data = open_split(prepared, "test")
    check_compatible(network, data)
    loader = data.loader(config.batch_size, num_workers=0)
    measured = measure_energy(network, audio_video_batches(loader, batches))
    picture = out or checkpoint.parent / "energy.png"
    plot_energy(measured, picture)
    totals = measured.totals()
    if as_json:
        print_json({"network": str(checkpoint), "set": str(prepared), **asdict(measured), **totals})
        return
    if quiet:
        return
    print_table(
        ("layer", "rate", "MACs", "SOPs by rate", "exact", "mJ"), [_row(one) for one in measured.layers]
    )
    print_line(
        f"{totals['mj_exact']:.4g} mJ a sample ({totals['mj_rate']:.4g} by rate), the same network without "
        f"spikes {totals['mj_reference']:.4g} mJ; with memory traffic about {totals['mj_with_memory']:.4g} mJ"
    )
    print_line(f"{measured.attention:,.0f} additions of attention, {measured.updates:,.0f} membranes updated "
        f"(not in the headline); see {picture}")  # fmt: skip
    print_line(
        f"rates of {checkpoint} on {measured.samples:,} test samples of {prepared}, T = {measured.steps:g}"
    )


def _row(layer: Layer) -> tuple[str, ...]:
    name = ".".join(part for part in layer.name.split(".") if part not in _PLAIN)
    # A layer that is fed real values has no spikes: it multiplies.
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


def main() -> None:
    """Entry point of the `snnergy` command."""
    run_command(app, "what was finished is kept; give the same command again, and --resume to train on")


if __name__ == "__main__":
    main()
