from __future__ import annotations

import re

import numpy as np

from avdata.reporting.charts import histogram, lines, ticks
from avdata.reporting.statistics import Histogram, round_range


def test_ticks_are_round_and_inside_the_axis() -> None:
    for low, high in ((0, 1), (-0.37, 12.2), (25.0567, 25.0568), (-1e-4, 3e5)):
        axis = ticks(low, high)
        assert 2 <= len(axis) <= 6
        assert all(-1e-9 <= tick.position <= 1 + 1e-9 for tick in axis)


def test_lines_draws_a_single_point() -> None:
    chart = lines("accuracy", ("step", "share"), {"val": [(20, 0.5)]}, low=0.0, high=1.0)
    assert chart is not None
    assert re.fullmatch(r"M[\d.]+ 150\.0h0", chart.shapes["val"])


def test_ticks_with_edges_label_both_ends_without_overlap() -> None:
    for low, high in ((0, 9.4), (0.3, 7.2), (1, 500), (-49.1, 28)):
        positions = [tick.position for tick in ticks(low, high, edges=True)]
        assert (positions[0], positions[-1]) == (0, 1)
        assert np.diff(positions).min() > 0.09


def test_round_range_contains_the_values_and_ends_at_ticks() -> None:
    rng = np.random.default_rng(0)
    for low, width in zip(rng.normal(0, 100, 200), 10 ** rng.uniform(-3, 4, 200), strict=True):
        first, last = round_range(low, low + width)
        assert first <= low + 1e-9 * width
        assert last >= low + width - 1e-9 * width
        assert last - first < 4 * width
        axis = ticks(first, last)
        assert (axis[0].position, axis[-1].position) == (0, 1)


def test_histogram_has_axis_titles_and_a_tick_above_the_highest_bar() -> None:
    data = Histogram(np.array([0.0, 1, 2]), {"a": np.array([7, 0]), "b": np.array([0, 3])})
    chart = histogram("Durations", "duration (s)", data)
    assert chart is not None
    assert (chart.x_title, chart.y_title) == ("duration (s)", "samples")
    assert [tick.text for tick in chart.y] == ["0", "2", "4", "6", "8"]
    assert chart.shapes["a"].startswith(f"M0.5 300.0V{300 * (1 - 7 / 8):.1f}")
