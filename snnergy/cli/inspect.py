"""Commands that measure a trained network: `evaluate`, `report` and `energy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avdata.cli.console import print_json, print_page, print_table
from avdata.cli.options import DatasetPath, Json, OpenPage, Silent, output_option
from avdata.errors import redact_url
from snnergy.analysis.tables import show_energy, show_result
from snnergy.cli.options import CheckpointPath, Device, RunPaths, as_device, find_checkpoint


def evaluate(
    run: CheckpointPath,
    dataset: DatasetPath,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the probability of each label by sample to a CSV file (default: no file).",
        ),
    ] = None,
    device: Device = "auto",
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Evaluate a trained network on the validation and test splits."""
    from snnergy.training.evaluation import CLASS_COLUMNS, class_table
    from snnergy.training.evaluation import evaluate as measure

    result = measure(find_checkpoint(run), dataset, device=as_device(device), predictions=predictions)
    if quiet and not as_json:
        return
    show_result(result, as_json=as_json)
    if not as_json and "test" in result:
        print_table(CLASS_COLUMNS, class_table(result["test"]))


def report(
    runs: RunPaths,
    output: Annotated[
        Path | None,
        output_option(
            "Write this HTML file (default: RUN/report.html, or RUN/comparison.html of the first)."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET", help="Read the prepared dataset here (default: where it was at the training)."
        ),
    ] = None,
    show: OpenPage = False,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Write a report of a run: accuracy and its interval, curves, classes, energy and attention masks.

    With several runs, compare them: results, settings that differ, curves and recall of each class.
    """
    from snnergy.analysis.report import report as write

    path = write(runs[0], output, dataset=dataset, against=runs[1:])
    print_page(path, as_json=as_json, quiet=quiet, show=show)


def energy(
    run: CheckpointPath,
    dataset: DatasetPath,
    batches: Annotated[int, typer.Option(min=1, metavar="N", help="Measure N batches.")] = 16,
    output: Annotated[
        Path | None,
        output_option(
            "Write the chart to this file, and the totals next to it (default: energy.png of the run)."
        ),
    ] = None,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Count the operations of a trained network on the test split (or val) and estimate its energy."""
    from dataclasses import asdict

    from snnergy.analysis.energy import measure_energy, plot_energy
    from snnergy.data import audio_video_batches, mel_transform, open_any_split
    from snnergy.training.checkpoint import load_network, write_json
    from snnergy.training.evaluation import match_dataset

    checkpoint = find_checkpoint(run)
    network, config = load_network(checkpoint)
    data = open_any_split(dataset, ("test", "val"), features=config.features)
    facts, _ = match_dataset(network, data)
    loader = data.loader(min(config.batch_size, len(data)), num_workers=0)
    measured = measure_energy(
        network, audio_video_batches(loader, batches, mel=mel_transform(data, facts=facts))
    )
    chart = output or checkpoint.parent / "energy.png"
    plot_energy(measured, chart)
    about = {"network": str(checkpoint), "dataset": redact_url(dataset), "split": data.split}
    write_json(chart.with_suffix(".json"), {**about, "samples": measured.samples, **measured.totals()})
    if as_json:
        print_json({**about, **asdict(measured), **measured.totals()})
    elif not quiet:
        show_energy(measured, checkpoint, f"{data.split} samples of {dataset}", chart)
