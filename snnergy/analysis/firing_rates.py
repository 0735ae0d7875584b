"""Charts of firing rates: of each modality and stage over a training, and of each layer of a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from avdata.reporting.charts import Chart, lines
from snnergy.analysis.run_results import Points

FILE = "rates.csv"
"""File in the folder of a run: rows are evaluations, columns are layers."""


def part_of(layer: str) -> tuple[str, int]:
    """Return the part of a network that a layer is in, and its stage; 4 after the encoders.

    >>> part_of("encoders.audio.0.embedding.embed.1"), part_of("fusions.2.audio_neuron.neuron")
    (('audio', 1), ('fusion', 2))
    """
    if found := re.match(r"encoders\.(\w+)\.(\d)", layer):
        return found[1], int(found[2]) + 1
    if found := re.match(r"fusions\.(\d)", layer):
        return "fusion", int(found[1])
    return (layer.split(".")[1], 4) if layer.startswith("readouts.") else ("fusion", 4)


def rate_charts(points: Points, rates: Sequence[tuple[str, float]]) -> list[Chart]:
    """Return the charts of a run.

    Args:
        points: points (step, rate) of each layer, from `FILE`; may be empty.
        rates: (layer, rate) of the evaluated network in the order of execution; may be empty.

    Returns:
        Up to one chart of each part over the training, and one of the layers by depth.
    """
    charts = [
        _over_training(part, points)
        for part in ("audio", "video", "fusion")
        if any(part_of(layer)[0] == part for layer in points)
    ]
    charts.append(_by_depth(rates))
    return [chart for chart in charts if chart is not None]


def _over_training(part: str, points: Points) -> Chart | None:
    stages: dict[str, list[Sequence[tuple[float, float]]]] = {}
    for layer, rates in sorted(points.items(), key=lambda item: part_of(item[0])[1]):
        name, stage = part_of(layer)
        if name == part:
            stages.setdefault("head" if stage == 4 else f"stage {stage}", []).append(rates)
    series = {name: _mean(layers) for name, layers in stages.items()}
    return lines(f"Firing rate of {part} during the training", _AXES, series, low=0.0)


_AXES = "optimizer step", "spikes per neuron and step"


def _mean(layers: Iterable[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    by_step: dict[float, list[float]] = {}
    for layer in layers:
        for step, rate in layer:
            by_step.setdefault(step, []).append(rate)
    return [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]


def _by_depth(rates: Sequence[tuple[str, float]]) -> Chart | None:
    series: dict[str, list[tuple[float, float]]] = {}
    for layer, rate in rates:
        name, _ = part_of(layer)
        points = series.setdefault(name, [])
        points.append((len(points) + 1.0, rate))
    axes = "layer of the modality or fusion, in the order of execution", _AXES[1]
    return lines("Firing rate by depth", axes, series, low=0.0)
