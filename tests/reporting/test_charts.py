from __future__ import annotations

import re

from avdata.reporting.charts import lines, ticks


def test_ticks_are_round_and_inside_the_axis() -> None:
    for low, high in ((0, 1), (-0.37, 12.2), (25.0567, 25.0568), (-1e-4, 3e5)):
        axis = ticks(low, high)
        assert 2 <= len(axis) <= 6
        assert all(-1e-9 <= tick.position <= 1 + 1e-9 for tick in axis)


def test_lines_draws_a_single_point() -> None:
    chart = lines("accuracy", "step", {"val": [(20, 0.5)]}, low=0.0, high=1.0)
    assert chart is not None
    assert re.fullmatch(r"M[\d.]+ 150\.0h0", chart.shapes["val"])
