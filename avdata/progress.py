"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""Callback with a stage's name, the items done and the total number of items."""


def tqdm_progress() -> Progress:
    """Return a `progress` callback that draws tqdm bars, one per stage.

    `prepare`, `plan`, `verify`, `report`, `export` and `publish` accept it.

    >>> progress = tqdm_progress()
    """
    from tqdm.auto import tqdm  # noqa: PLC0415

    bars: dict[str, Any] = {}

    def update(stage: str, done: int, total: int) -> None:
        bar = bars.get(stage)
        if bar is None or (bar.n >= bar.total and done < bar.n):  # the stage restarts
            bar = bars[stage] = tqdm(total=total, desc=stage)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return update
