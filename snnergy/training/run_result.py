"""Result of a run: the selected network on the test split, and the files that a finished run has."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.models.stored import stored_network_errors
from snnergy.training.checkpoint import (
    extends_run,
    extension_hint,
    load,
    read_config,
    read_result,
    write_json,
)
from snnergy.training.config import TrainConfig
from snnergy.training.diagnostics import check_result, diagnose
from snnergy.training.distributed import broadcast_from_rank0, check_on_rank0
from snnergy.training.evaluation import write_classes
from snnergy.training.plots import plot_confusion, plot_curves
from snnergy.training.predictions import Predictions, write_predictions
from snnergy.training.run_data import RunData

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_log = logging.getLogger(__name__)


def measure_result(
    fabric: Fabric,
    network: SNNergy,
    sets: RunData,
    folder: Path,
    best: Mapping[str, Any] | None,
    predictions: Predictions,
) -> dict[str, Any]:
    """Evaluate the selected checkpoint of a run on the test split, on all processes.

    Args:
        fabric: launched Fabric.
        network: network on the device, whose weights are replaced by those of the checkpoint.
        sets: datasets of the run.
        folder: folder of the run.
        best: the best evaluation, see `Selection`; None: `last.ckpt` is selected.
        predictions: filled with those of the test split.

    Returns:
        `labels`, `num_classes`, the metrics of each evaluated split, `chosen`, `best`, `health`, `warnings`
        and `rates`.
    """
    chosen = "last.ckpt" if best is None else "best.ckpt"
    path = folder / chosen
    content = broadcast_from_rank0(fabric, path.read_bytes() if fabric.is_global_zero else None)
    assert content is not None
    state = load(content, path)
    with stored_network_errors(path):
        network.load_state_dict(state["ema"] or state["network"])
    summary = dict(best or {})
    rates: dict[str, float] = summary.pop("rates", {})
    measured = {"val": summary.pop("measured")} if summary else {}
    if "test" in sets.splits:
        measured["test"] = sets.measure(network, "test", rates, predictions)
    warnings = [text for split, values in measured.items() for text in check_result(values, split)]
    for warning in warnings if fabric.is_global_zero else ():
        _log.warning(warning)
    return {
        "labels": list(sets.facts.labels),
        "num_classes": len(sets.facts.labels),
        **measured,
        "chosen": chosen,
        "best": summary or None,
        "health": diagnose(network, rates),
        "warnings": warnings,
        "rates": {name: round(rate, 6) for name, rate in rates.items()},
    }


def write_result(folder: Path, result: Mapping[str, Any], predictions: Predictions) -> None:
    """Write the plots, `classes.csv`, `predictions.csv` and `result.json` of a finished run."""
    plot_curves(folder / "metrics.csv", folder / "curves.png")
    if "test" in result:
        write_classes(folder / "classes.csv", result["test"])
        write_predictions(folder / "predictions.csv", {"test": predictions}, result["labels"])
        plot_confusion(result["test"]["confusion"], result["labels"], folder / "confusion.png")
    # Must come last: a run with this file is finished.
    write_json(folder / "result.json", result)


def finished_result(
    fabric: Fabric, folder: Path, config: TrainConfig, facts: DatasetFacts
) -> dict[str, Any] | None:
    """Return the result of a run to resume if it is finished and not to be extended.

    Raises:
        AvdataError: the run is one on another dataset, or its result is damaged.
    """
    results: list[bytes] = []

    def read() -> None:
        read_config(folder)["facts"].check_equal(facts)
        if (folder / "result.json").exists() and not extends_run(folder, config):
            results.append(json.dumps(read_result(folder)).encode())
            _log.warning("The run in %s is finished. %s.", folder, extension_hint(folder))

    check_on_rank0(fabric, read)
    content = broadcast_from_rank0(fabric, results[0] if results else None)
    return None if content is None else dict(json.loads(content))
