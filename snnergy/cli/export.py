"""Command that writes a trained network in the format of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avdata.cli.console import print_json, print_line
from avdata.cli.options import Json, Silent, choice, output_option
from snnergy.cli.options import TrainedNetwork


def export(
    run: TrainedNetwork,
    format: Annotated[
        str, choice("--format", "snnergy.models.formats:FORMATS", "Write this format: {choices}.")
    ] = "onnx",
    output: Annotated[
        Path | None, output_option("Write to this file (default: model with the suffix of the format).")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Fix the batch size of the inputs at N.")
    ] = 1,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Write a trained network with batch norms folded, for inputs shaped like its training set's samples.

    The inputs are normalized as by model.preprocess(batch). A NIR graph computes one time step of one sample.
    """
    from snnergy.models.export import export_network
    from snnergy.models.formats import FORMATS
    from snnergy.training.pretrained import load_trained

    path = output or Path(f"model{FORMATS[format]}")
    shapes = export_network(load_trained(run), path, format, batch_size=batch_size)
    if as_json:
        print_json({"path": str(path), "format": format, "inputs": shapes})
    elif not quiet:
        print_line(f"Wrote {path}: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}.")
