"""Command that applies a trained network to files and datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avdata.cli.console import print_json, print_line, print_table
from avdata.cli.options import Json, Silent
from snnergy.cli.options import Device, TrainedNetwork, as_device


def predict(
    run: TrainedNetwork,
    inputs: Annotated[
        list[str], typer.Argument(metavar="FILE|DATASET...", help="Media files, or prepared datasets.")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Predict this split of the datasets (default: the first of test, val, train).",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Show the N most probable labels.")] = 3,
    device: Device = "auto",
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Predict the labels of media files, or of the samples of a prepared dataset, with probabilities.

    Files are prepared with the audio, video and mel settings of the network's training set.
    """
    from snnergy.analysis.prediction import predict as run_network

    predictions = run_network(run, inputs, split=split, device=as_device(device))
    if as_json:
        print_json([{"source": each.source, "probabilities": each.probabilities} for each in predictions])
    elif len(predictions) == 1 and not quiet:
        print_line(predictions[0].source)
        rows = list(predictions[0].probabilities.items())[:top]
        print_table(("label", "probability"), [(label, f"{share:.4f}") for label, share in rows])
    elif not quiet:
        shown = [list(each.probabilities.items())[:top] for each in predictions]
        print_table(
            ("source", "predicted", "probability", "next"),
            [
                (
                    Path(each.source).name,
                    each.label,
                    f"{rows[0][1]:.4f}",
                    ", ".join(f"{label} {share:.2f}" for label, share in rows[1:]),
                )
                for each, rows in zip(predictions, shown, strict=True)
            ],
        )
