"""Charts as data for the page templates: SVG paths on a unit plane, and ticks at round numbers.

The page stretches the SVG to its column. All text is HTML outside the SVG, so it stays readable on a phone,
in print and for a screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avdata.reporting.statistics import Histogram, round_range, round_step

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
        x_title: title of the x axis, with its unit.
        y_title: title of the y axis, with its unit.
        shapes: SVG path data by name of the series.
        kind: `bars` (filled paths), `lines` (stroked paths), or `band` (first path filled, others stroked).
        x: ticks of the x axis.
        y: ticks of the y axis.
        description: text alternative of the chart, for screen readers.
    """

    title: str
    x_title: str
    y_title: str
    shapes: Mapping[str, str]
    kind: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    description: str


def ticks(low: float, high: float, count: int = 5, *, edges: bool = False) -> tuple[Tick, ...]:
    """Return ticks at round numbers between two values.

    >>> [tick.text for tick in ticks(0, 10, 5)]
    ['0', '2', '4', '6', '8', '10']

    Args:
        low: start of the axis.
        high: end of the axis.
        count: largest number of intervals.
        edges: whether both ends have a tick, also if they are no round numbers.
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return ()
    step = round_step(span, count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [number * step for number in range(first, last + 1)]
    if edges:
        # A round number next to an end would overlap the end's text.
        values = [low, *(value for value in values if min(value - low, high - value) > span / 10), high]
    return tuple(Tick((value - low) / span, _tick_text(value, step)) for value in values)


def _tick_text(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}" if abs(value) > step / 1e6 else "0"


def histogram(
    title: str, x_title: str, data: Histogram, *, scale: float = 1.0, y_title: str = "samples"
) -> Chart | None:
    """Return stacked bars of a histogram, or None if it is empty.

    Args:
        title: caption.
        x_title: title of the x axis, with the unit of the values after scaling.
        data: the counts.
        scale: factor of the bin edges.
        y_title: what is counted.
    """
    if not data.total:
        return None
    edges, stacked = data.edges * scale, np.zeros(len(data.edges) - 1, np.int64)
    highest = int(np.sum(list(data.counts.values()), axis=0).max())
    top = round_range(0, highest, min(highest, 4))[1]
    shapes = {}
    for name, counts in data.counts.items():
        shapes[name] = _bars(stacked / top, (stacked + counts) / top)
        stacked = stacked + counts
    low, high = float(edges[0]), float(edges[-1])
    peak = int(stacked.argmax())
    totals = ", ".join(f"{int(counts.sum()):,} {name}" for name, counts in data.counts.items())
    description = (
        f"{title}: {totals}; {x_title} from {low:.4g} to {high:.4g},"
        f" most ({int(stacked[peak]):,}) between {edges[peak]:.4g} and {edges[peak + 1]:.4g}"
    )
    return Chart(
        title, x_title, y_title, shapes, "bars", ticks(low, high, edges=True),
        ticks(0, top, min(highest, 4)), description,
    )  # fmt: skip


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
    axes: tuple[str, str],
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    low: float | None = None,
    high: float | None = None,
) -> Chart | None:
    """Return a line chart of points (x, y), or None if there are no finite points.

    Args:
        title: caption.
        axes: titles of the x and the y axis, with their units.
        series: points by name, ascending in x.
        low: start of the y axis (default: a round number below all values).
        high: end of the y axis (default: a round number above all values).
    """
    finite = [point for points in series.values() for point in points if math.isfinite(point[1])]
    if not finite:
        return None
    left, right = _padded_range([x for x, _ in finite])
    bottom, top = round_range(*_padded_range([y for _, y in finite]))
    bottom, top = bottom if low is None else low, top if high is None else high
    viewport = _Viewport(left, right, bottom, top)
    shapes = {name: viewport.path(points) for name, points in series.items() if points}
    ends = ", ".join(f"{name} ends at {points[-1][1]:.4g}" for name, points in series.items() if points)
    return Chart(
        title, *axes, shapes, "lines", ticks(left, right, edges=True), ticks(bottom, top, edges=True),
        f"{title}: {ends}",
    )  # fmt: skip


def band(
    title: str,
    axes: tuple[str, str],
    means: Mapping[str, Sequence[float]],
    deviations: Sequence[float],
    x: Sequence[Tick] = (),
) -> Chart:
    """Return lines of means by position. The first one has a band of ± its standard deviation.

    Args:
        title: caption.
        axes: titles of the x and the y axis, with their units.
        means: one value per position, by name of the series.
        deviations: standard deviation of the first series at each position.
        x: ticks of the x axis (default: numbers of the positions).
    """
    first = np.array(next(iter(means.values())))
    lower, upper = first - np.array(deviations), first + np.array(deviations)
    values = [*lower, *upper, *(value for values in means.values() for value in values)]
    bottom, top = round_range(*_padded_range(values))
    viewport = _Viewport(0, max(len(first) - 1, 1), bottom, top)
    outline = [*enumerate(upper), *reversed(list(enumerate(lower)))]
    shapes = {"mean ± standard deviation": viewport.path(outline) + "Z"}
    shapes |= {name: viewport.path(list(enumerate(values))) for name, values in means.items()}
    description = (
        f"{title}: mean from {first[0]:.4g} to {first[-1]:.4g}, minimum {first.min():.4g},"
        f" maximum {first.max():.4g}; deviation {min(deviations):.3g} to {max(deviations):.3g}"
    )
    return Chart(
        title, *axes, shapes, "band", tuple(x) or ticks(0, len(first) - 1, edges=True),
        ticks(bottom, top, edges=True), description,
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
