"""The command about energy: `snnergy energy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avdata.cli.console import as_count, print_json, print_table, say

if TYPE_CHECKING:
    from snnergy.energy import Layer

_PLAIN = frozenset({"encoders", "embedding", "attention", "message", "layers", "conv"})
"""Parts of a layer's path that tell it from no other, and would not fit on a terminal's line."""


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

    from snnergy.data import open_split, pairs
    from snnergy.energy import draw_energy, measure
    from snnergy.evaluation import check_fits
    from snnergy.train import load_network

    best = run / "best.ckpt"
    checkpoint = (best if best.is_file() else run / "last.ckpt") if run.is_dir() else run
    network, config = load_network(checkpoint)
    data = open_split(prepared, "test")
    check_fits(network, data)
    loader = data.loader(config.batch_size, num_workers=0)
    measured = measure(network, pairs(loader, batches))
    picture = out or checkpoint.parent / "energy.png"
    draw_energy(measured, picture)
    totals = measured.totals()
    if as_json:
        print_json({"network": str(checkpoint), "set": str(prepared), **asdict(measured), **totals})
        return
    if quiet:
        return
    print_table(
        ("layer", "rate", "MACs", "SOPs by rate", "exact", "mJ"), [_row(one) for one in measured.layers]
    )
    say(
        f"{totals['mj_exact']:.4g} mJ a sample ({totals['mj_rate']:.4g} by rate), the same network without "
        f"spikes {totals['mj_reference']:.4g} mJ; with memory traffic about {totals['mj_with_memory']:.4g} mJ"
    )
    say(f"{measured.attention:,.0f} additions of attention, {measured.updates:,.0f} membranes updated "
        f"(not in the headline); see {picture}")  # fmt: skip
    say(f"rates of {checkpoint} on {measured.samples:,} test samples of {prepared}, T = {measured.steps:g}")


def _row(layer: Layer) -> tuple[str, ...]:
    name = ".".join(part for part in layer.name.split(".") if part not in _PLAIN)
    # A layer that is fed real values has no spikes: it multiplies.
    counts = (
        (f"{layer.rate:.4f}", as_count(layer.macs), as_count(layer.sops_rate), as_count(layer.sops_exact))
        if layer.spiking
        else ("–", as_count(layer.macs), "–", "–")
    )
    return (name, *counts, f"{layer.millijoules:.2e}")
