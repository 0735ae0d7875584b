"""Progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""Callback with a stage's name, the items done and the total number of items."""


def tqdm_progress() -> Progress:
    """A `progress` for `prepare`, `download`, `verify` and `report` that draws tqdm's bars.

    >>> show = tqdm_progress()
    """
    from tqdm.auto import tqdm  # noqa: PLC0415

    held: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        bar = held.get(stage)
        if bar is None or (bar.n >= bar.total and done < bar.n):  # the same work begins once more
            bar = held[stage] = tqdm(total=total, desc=stage)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show
