"""The `snnergy` command: each subcommand parses its options, calls one public function and prints."""

from __future__ import annotations

import os

from avdata.cli.console import RESUME_HINT, run_command
from avdata.cli.options import add_command, create_app
from snnergy.cli import export, inspect, predict, train

app = create_app(
    "snnergy",
    "Train and analyze a spiking network with linear-cost cross-modal attention on datasets of avdata.",
    "avdata prepare synthetic -o data && snnergy train data --train-preset quick --steps 250 -o run",
)

add_command(
    app,
    train.train,
    "snnergy train out/cremad --model nano --steps 20 --batch-size 4 --output runs/cremad",
    summary="Train a network and evaluate it on the test split.",
)
add_command(app, inspect.evaluate, "snnergy evaluate runs/cremad out/cremad")
add_command(app, inspect.evaluate, "snnergy eval runs/cremad out/cremad", name="eval", hidden=True)
add_command(
    app,
    train.compare,
    "snnergy compare out/cremad --model nano --fusions audio,cmqka --steps 2 --seeds 1 -o table",
    summary="Train several fusions over several seeds.",
)
add_command(
    app,
    train.reproduce,
    "snnergy reproduce cremad --smoke --output reproduction",
    summary="Reproduce a table of the paper's protocol.",
)
add_command(app, inspect.report, "snnergy report runs/cremad", summary="Write a report of a run (HTML).")
add_command(
    app,
    inspect.energy,
    "snnergy energy runs/cremad out/cremad",
    summary="Estimate the energy of a trained network by layer.",
)
add_command(
    app,
    predict.predict,
    "snnergy predict runs/cremad out/cremad --split test --top 2",
    summary="Predict labels of media files or of a dataset.",
)
add_command(
    app,
    export.export,
    "snnergy export runs/cremad --format torch --output cremad.pt2",
    summary="Write a trained network as ONNX, torch program or NIR.",
)


def main() -> None:
    """Run the `snnergy` command."""
    # Read when torch loads its OpenMP library, whose threads otherwise spin while they wait for one another.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run_command(app, {"train": train.resume_hint, "compare": RESUME_HINT, "reproduce": RESUME_HINT})


if __name__ == "__main__":
    main()
