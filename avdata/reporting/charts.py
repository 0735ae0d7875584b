"""Charts as data for the page's templates: bars and lines as shares of their axes, ticks at round numbers.

The page draws them as SVG that stretches, with the words beside it in HTML, so that they stay readable on a
phone, in print and to a screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avdata.reporting.statistics import Histogram

WIDTH, HEIGHT = 1000.0, 300.0
"""The drawing's own units."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, as a share of it, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Attributes:
        title: what it shows.
        unit: of the x axis.
        shapes: SVG path data by the name of each series.
        kind: `bars` (paths are filled), `lines` (stroked), or `band` (the first one filled, others stroked).
        x: ticks of the x axis.
        y: ticks of the y axis.
        said: the drawing in words, for those who cannot see it.
        marks: named places on the x axis.
    """

    title: str
    unit: str
    shapes: Mapping[str, str]
    kind: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    said: str
    marks: tuple[Tick, ...] = ()


def ticks(low: float, high: float, count: int = 4) -> tuple[Tick, ...]:
    """Marks at round numbers between two values.

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
    places = [number * step for number in range(first, last + 1)]
    return tuple(Tick((place - low) / span, _number(place, step)) for place in places)


def _number(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}" if abs(value) > step / 2 else "0"


def histogram(title: str, unit: str, held: Histogram, *, scale: float = 1.0) -> Chart | None:
    """Stacked bars of a histogram; None where it is empty.

    Args:
        title: what it shows.
        unit: of the values, after `scale`.
        held: the counts.
        scale: by which the edges are multiplied.
    """
    if not held.total:
        return None
    edges, stacked = held.edges * scale, np.zeros(len(held.edges) - 1, np.int64)
    top = int(np.sum(list(held.counts.values()), axis=0).max())
    shapes = {}
    for name, counts in held.counts.items():
        shapes[name] = _bars(stacked / top, (stacked + counts) / top)
        stacked = stacked + counts
    low, high = float(edges[0]), float(edges[-1])
    busiest = int(stacked.argmax())
    totals = ", ".join(f"{int(counts.sum()):,} {name}" for name, counts in held.counts.items())
    said = (
        f"{title}: {totals}; from {low:.4g} to {high:.4g} {unit},"
        f" most ({int(stacked[busiest]):,}) between {edges[busiest]:.4g} and {edges[busiest + 1]:.4g}"
    )
    return Chart(title, unit, shapes, "bars", ticks(low, high), ticks(0, top, min(top, 3)), said)


def _bars(bottoms: np.ndarray, tops: np.ndarray) -> str:
    width = WIDTH / len(tops)
    return "".join(
        f"M{place * width + 0.5:.1f} {HEIGHT * (1 - bottom):.1f}V{HEIGHT * (1 - top):.1f}"
        f"H{(place + 1) * width - 0.5:.1f}V{HEIGHT * (1 - bottom):.1f}Z"
        for place, (bottom, top) in enumerate(zip(bottoms, tops, strict=True))
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
    """Lines through points (x, y); None where there are none.

    Args:
        title: what it shows.
        unit: of the x axis.
        series: points by name, ascending in x.
        low: where the y axis begins; the smallest value without.
        high: where it ends.
    """
    points = [point for held in series.values() for point in held if math.isfinite(point[1])]
    if not points:
        return None
    left, right = _span([x for x, _ in points])
    bottom, top = _span([y for _, y in points])
    bottom, top = bottom if low is None else low, top if high is None else high
    place = _Frame(left, right, bottom, top)
    shapes = {name: place.path(held) for name, held in series.items() if held}
    ends = ", ".join(f"{name} ends at {held[-1][1]:.4g}" for name, held in series.items() if held)
    return Chart(title, unit, shapes, "lines", ticks(left, right), ticks(bottom, top, 4), f"{title}: {ends}")


def band(title: str, unit: str, means: Mapping[str, Sequence[float]], spread: Sequence[float]) -> Chart:
    """Means by position, the first one with a band of ± its spread.

    Args:
        title: what it shows.
        unit: of the x axis.
        means: one value a position, by name.
        spread: standard deviation of the first one's positions.
    """
    first = np.array(next(iter(means.values())))
    lower, upper = first - np.array(spread), first + np.array(spread)
    bottom, top = _span([*lower, *upper, *(value for held in means.values() for value in held)])
    place = _Frame(0, max(len(first) - 1, 1), bottom, top)
    outline = [*enumerate(upper), *reversed(list(enumerate(lower)))]
    shapes = {"± deviation": place.path(outline) + "Z"}
    shapes |= {name: place.path(list(enumerate(held))) for name, held in means.items()}
    said = f"{title}: the mean goes from {first[0]:.4g} to {first[-1]:.4g}, lowest {first.min():.4g}, highest"
    return Chart(
        title, unit, shapes, "band", ticks(0, len(first) - 1), ticks(bottom, top, 4),
        f"{said} {first.max():.4g}; deviation {min(spread):.3g} to {max(spread):.3g}",
    )  # fmt: skip


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    margin = 0.0 if high > low else max(abs(high) * 0.05, 0.5)
    return low - margin, high + margin


@dataclass(frozen=True)
class _Frame:
    """The part of the plane that a drawing shows."""

    left: float
    right: float
    bottom: float
    top: float

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        placed = [
            (
                WIDTH * (x - self.left) / (self.right - self.left),
                HEIGHT * (1 - (y - self.bottom) / (self.top - self.bottom)),
            )
            for x, y in points
            if math.isfinite(y)
        ]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed) if placed else ""
        # A line of one point has no length: its round ends are a dot.
        return path + "h0" * (len(placed) == 1)
