"""The `snnergy` command: each subcommand parses, calls one public function, and prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from avdata.cli.console import Version, print_json, print_table, run_command, say, show_progress
from snnergy.cli_energy import energy

if TYPE_CHECKING:
    from snnergy.settings import TrainConfig

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
    from snnergy.train import train as run

    given = {
        "preset": preset, "fusion": fusion, "steps": steps, "epochs": epochs, "batch_size": batch_size,
        "lr": lr, "seed": seed,
    }  # fmt: skip
    short = {name: value for name, value in given.items() if value is not None}
    settled = _settled(out if resume else None, regime, config, short, settings or [])
    with show_progress(quiet=quiet or as_json) as progress:
        result = run(prepared, out, settled, progress=progress, resume=resume, device=_device(device))
    if int(os.environ.get("RANK", "0")):
        return
    _show(result, as_json=as_json)
    if not as_json:
        say(
            f"{result['steps']:,} step{'s' * (result['steps'] != 1)} in {result['seconds']:.0f} s,"
            f" {result['params']:,} weights; look at it with: snnergy report {out}"
        )


def _settled(
    resumed: Path | None, regime: str | None, file: Path | None, short: dict[str, Any], settings: list[str]
) -> TrainConfig:
    """A file's settings under the options under --set; below all, the regime or the resumed run's own."""
    from snnergy.checkpoints import read_config
    from snnergy.data import merge, parse_setting, read_config_file
    from snnergy.settings import parse, settle

    layers = [read_config_file(file) if file else {}, short, *map(parse_setting, settings)]
    if resumed is None or not (resumed / "config.json").is_file():
        return settle(regime, *layers)
    settled = read_config(resumed)["config"]
    for layer in [{} if regime is None else {"regime": regime}, *layers]:
        settled = merge(settled, layer)
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
    from snnergy.evaluation import CLASS_COLUMNS, class_table
    from snnergy.train import evaluate as measure

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

    from snnergy.compare import compare as run

    given = {"preset": preset, "steps": steps, "epochs": epochs}
    short = {name: value for name, value in given.items() if value is not None}
    settled = _settled(None, regime, config, short, settings or [])
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
    say(f"{out / 'table.md'}, table.csv and table.png are written; the runs are in {out / 'runs'}")


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
    from snnergy.report import report as write

    path = write(run, page, prepared=prepared)
    if as_json:
        print_json({"page": str(path), "bytes": path.stat().st_size})
    elif not quiet:
        say(f"{path} is written; it needs no network")
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


app.command(
    short_help="Estimate a trained network's energy, layer by layer.",
    epilog="Example:  snnergy energy runs/cremad out/cremad",
)(energy)


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
        say("the set has neither a val nor a test split: nothing was measured")
        return
    print_table(("split", "accuracy", "loss", "samples"), rows)


def main() -> None:
    """Entry point of the `snnergy` command."""
    run_command(app, "what was finished is kept; give the same command again, and --resume to train on")


if __name__ == "__main__":
    main()
