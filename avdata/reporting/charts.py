"""Charts as data for the page templates: SVG paths on a unit plane, and ticks at round numbers.

The page stretches the SVG to its column. All text is HTML outside the SVG, so it stays readable on a phone,
in print and for a screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avdata.reporting.statistics import Histogram

WIDTH, HEIGHT = 1000.0, 300.0
"""Size of the SVG view box."""


@dataclass(frozen=True)
class Tick:
    """Axis tick: position as a fraction of the axis, and its text."""

    position: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: caption.
        unit: unit of the x axis.
        shapes: SVG path data by name of the series.
        kind: `bars` (filled paths), `lines` (stroked paths), or `band` (first path filled, others stroked).
        x: ticks of the x axis.
        y: ticks of the y axis.
        description: text alternative of the chart, for screen readers.
    """

    title: str
    unit: str
    shapes: Mapping[str, str]
    kind: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    description: str


def ticks(low: float, high: float, count: int = 4) -> tuple[Tick, ...]:
    """Return ticks at round numbers between two values.

    >>> [tick.text for tick in ticks(0, 10, 5)]
    ['0', '2', '4', '6', '8', '10']
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return ()
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [number * step for number in range(first, last + 1)]
    return tuple(Tick((value - low) / span, _tick_text(value, step)) for value in values)


def _tick_text(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}" if abs(value) > step / 2 else "0"


def histogram(title: str, unit: str, data: Histogram, *, scale: float = 1.0) -> Chart | None:
    """Return stacked bars of a histogram, or None if it is empty.

    Args:
        title: caption.
        unit: unit of the values after scaling.
        data: the counts.
        scale: factor of the bin edges.
    """
    if not data.total:
        return None
    edges, stacked = data.edges * scale, np.zeros(len(data.edges) - 1, np.int64)
    top = int(np.sum(list(data.counts.values()), axis=0).max())
    shapes = {}
    for name, counts in data.counts.items():
        shapes[name] = _bars(stacked / top, (stacked + counts) / top)
        stacked = stacked + counts
    low, high = float(edges[0]), float(edges[-1])
    peak = int(stacked.argmax())
    totals = ", ".join(f"{int(counts.sum()):,} {name}" for name, counts in data.counts.items())
    description = (
        f"{title}: {totals}; from {low:.4g} to {high:.4g} {unit},"
        f" most ({int(stacked[peak]):,}) between {edges[peak]:.4g} and {edges[peak + 1]:.4g}"
    )
    return Chart(title, unit, shapes, "bars", ticks(low, high), ticks(0, top, min(top, 3)), description)


def _bars(bottoms: np.ndarray, tops: np.ndarray) -> str:
    width = WIDTH / len(tops)
    return "".join(
        f"M{number * width + 0.5:.1f} {HEIGHT * (1 - bottom):.1f}V{HEIGHT * (1 - top):.1f}"
        f"H{(number + 1) * width - 0.5:.1f}V{HEIGHT * (1 - bottom):.1f}Z"
        for number, (bottom, top) in enumerate(zip(bottoms, tops, strict=True))
        if top > bottom
    )


def lines(
    title: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    low: float | None = None,
    high: float | None = None,
) -> Chart | None:
    """Return a line chart of points (x, y), or None if there are no finite points.

    Args:
        title: caption.
        unit: unit of the x axis.
        series: points by name, ascending in x.
        low: start of the y axis (default: the smallest value).
        high: end of the y axis (default: the largest value).
    """
    finite = [point for points in series.values() for point in points if math.isfinite(point[1])]
    if not finite:
        return None
    left, right = _padded_range([x for x, _ in finite])
    bottom, top = _padded_range([y for _, y in finite])
    bottom, top = bottom if low is None else low, top if high is None else high
    viewport = _Viewport(left, right, bottom, top)
    shapes = {name: viewport.path(points) for name, points in series.items() if points}
    ends = ", ".join(f"{name} ends at {points[-1][1]:.4g}" for name, points in series.items() if points)
    return Chart(title, unit, shapes, "lines", ticks(left, right), ticks(bottom, top, 4), f"{title}: {ends}")


def band(title: str, unit: str, means: Mapping[str, Sequence[float]], deviations: Sequence[float]) -> Chart:
    """Return lines of means by position. The first one has a band of ± its standard deviation.

    Args:
        title: caption.
        unit: unit of the x axis.
        means: one value per position, by name of the series.
        deviations: standard deviation of the first series at each position.
    """
    first = np.array(next(iter(means.values())))
    lower, upper = first - np.array(deviations), first + np.array(deviations)
    bottom, top = _padded_range([*lower, *upper, *(value for values in means.values() for value in values)])
    viewport = _Viewport(0, max(len(first) - 1, 1), bottom, top)
    outline = [*enumerate(upper), *reversed(list(enumerate(lower)))]
    shapes = {"± deviation": viewport.path(outline) + "Z"}
    shapes |= {name: viewport.path(list(enumerate(values))) for name, values in means.items()}
    description = (
        f"{title}: mean from {first[0]:.4g} to {first[-1]:.4g}, minimum {first.min():.4g},"
        f" maximum {first.max():.4g}; deviation {min(deviations):.3g} to {max(deviations):.3g}"
    )
    return Chart(
        title, unit, shapes, "band", ticks(0, len(first) - 1), ticks(bottom, top, 4), description
    )  # fmt: skip


def _padded_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    margin = 0.0 if high > low else max(abs(high) * 0.05, 0.5)
    return low - margin, high + margin


@dataclass(frozen=True)
class _Viewport:
    """Visible region of the plane, mapped to the SVG view box."""

    left: float
    right: float
    bottom: float
    top: float

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        coordinates = [
            (
                WIDTH * (x - self.left) / (self.right - self.left),
                HEIGHT * (1 - (y - self.bottom) / (self.top - self.bottom)),
            )
            for x, y in points
            if math.isfinite(y)
        ]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in coordinates) if coordinates else ""
        # A path of one point has no length: with "h0", its round line caps are drawn as a dot.
        return path + "h0" * (len(coordinates) == 1)
