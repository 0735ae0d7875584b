"""Results as tables on the terminal, or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.cli.console import format_count, print_json, print_line, print_table

if TYPE_CHECKING:
    from snnergy.analysis.comparison import Row
    from snnergy.analysis.energy import Energy, Layer


SCORES = ("accuracy", "macro_f1", "uar", "loss")


def show_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print accuracy, macro-F1, UAR and loss of each evaluated split."""
    if as_json:
        print_json(result)
        return
    measured = {split: result[split] for split in ("val", "test") if split in result}
    rows = [
        (split, *(f"{metrics[name]:.4f}" for name in SCORES), f"{metrics['samples']:,}")
        for split, metrics in measured.items()
    ]
    if not rows:
        print_line("nothing was evaluated: the dataset has neither a val nor a test split")
        return
    print_table(("split", *SCORES, "samples"), rows)


def _optional(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def show_comparison(rows: list[Row], output: Path, *, as_json: bool) -> None:
    """Print one row per fusion."""
    from snnergy.analysis.comparison import p_values  # noqa: PLC0415  # imports torch

    if as_json:
        print_json(
            [
                {
                    **asdict(row),
                    "mean": row.mean,
                    "std": row.std,
                    "p_value": p,
                    "energy": row.energy.totals(),
                }
                for row, p in zip(rows, p_values(rows), strict=True)
            ]
        )
        return
    cells = [
        (
            row.fusion, f"{row.mean:.4f}", _optional(row.std), _optional(p), f"{row.params:,}",
             f"{row.ms:.2f}", f"{row.megabytes:.1f}", f"{row.energy.sops() / 1e6:.2f}",
            f"{row.energy.millijoules():.3g}",
        )
        for row, p in zip(rows, p_values(rows), strict=True)
    ]  # fmt: skip
    print_table(("fusion", "accuracy", "std", "p", "weights", "ms per sample", "MB", "MSOPs", "mJ"), cells)
    print_line(f"Wrote {output / 'table.md'}, table.csv and table.png. The runs are in {output / 'runs'}.")


def show_energy(measured: Energy, checkpoint: Path, samples: str, chart: Path) -> None:
    """Print one row per layer, and the totals."""
    totals = measured.totals()
    print_table(
        ("layer", "rate", "MACs", "SOPs by rate", "exact", "mJ"),
        [layer_row(layer) for layer in measured.layers],
    )
    print_line(
        f"{totals['mj_exact']:.4g} mJ per sample ({totals['mj_rate']:.4g} by rate); the same network without"
        f" spikes: {totals['mj_reference']:.4g} mJ; with memory traffic: {totals['mj_with_memory']:.4g} mJ"
    )
    print_line(
        f"not included: {measured.attention:,.0f} additions of attention, {measured.updates:,.0f} membrane"
        f" updates; see {chart}"
    )
    print_line(f"firing rates of {checkpoint} on {measured.samples:,} {samples}, T = {measured.steps:g}")


_REDUNDANT = frozenset({"encoders", "embedding", "attention", "message", "layers", "conv"})
"""Parts of a layer's path that do not distinguish it, left out to fit a terminal's line."""


def layer_row(layer: Layer) -> tuple[str, ...]:
    """Return the cells of one layer."""
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
