"""The `snnergy` command: each subcommand parses, calls one public function, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from avdata.terminal import print_json, print_table, run_command, say, show_progress
from snnergy.cli_energy import energy

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


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        import os

        os.environ["AVDATA_DEBUG"] = "1"


@app.command(epilog="Example:  snnergy train out/cremad --preset small --epochs 100 --out runs/cremad")
def train(
    prepared: Annotated[Path, typer.Argument(help="Folder of a prepared set.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run"),
    preset: Annotated[str, typer.Option(help="Size: nano, tiny, small, base, large, paper_like.")] = "nano",
    fusion: Annotated[str, typer.Option(help="cmqka, its variants, concat, audio or video.")] = "cmqka",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs, without --steps.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    lr: Annotated[float, typer.Option(min=1e-9, help="Peak of the learning rate.")] = 2e-3,
    seed: int = 42,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last.ckpt.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network, keep its best and last state, and evaluate it once on the test split."""
    from snnergy.train import TrainConfig
    from snnergy.train import train as run

    config = TrainConfig(
        preset=preset, fusion=fusion, steps=steps, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
    )
    with show_progress(quiet=quiet or as_json) as progress:
        result = run(prepared, out, config, progress=progress, resume=resume)
    _show(result, as_json=as_json)
    if not as_json:
        say(
            f"{result['steps']:,} steps in {result['seconds']:.0f} s, {result['params']:,} weights; see {out}"
        )


@app.command(name="eval", epilog="Example:  snnergy eval runs/cremad out/cremad")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint in it.")],
    prepared: Annotated[Path, typer.Argument(help="Folder of a prepared set.")],
    as_json: Json = False,
) -> None:
    """Evaluate a trained network on the validation and test splits."""
    from snnergy.train import evaluate as measure

    best = run / "best.ckpt"
    checkpoint = (best if best.is_file() else run / "last.ckpt") if run.is_dir() else run
    _show(measure(checkpoint, prepared), as_json=as_json)


app.command(epilog="Example:  snnergy energy runs/cremad out/cremad")(energy)


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    measured = {split: result[split] for split in ("val", "test") if split in result}
    rows = [
        (split, f"{held['accuracy']:.4f}", f"{held['loss']:.4f}", f"{held['samples']:,}")
        for split, held in measured.items()
    ]
    print_table(("split", "accuracy", "loss", "samples"), rows)


def main() -> None:
    """Entry point of the `snnergy` command."""
    run_command(app)


if __name__ == "__main__":
    main()
