"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""Callback with a stage's name, the items done and the total number of items.

Items are clips or files, and bytes in the stages of `BYTE_STAGES`.
"""

BYTE_STAGES = ("verifying", "fetching", "extracting")
"""Stages of a download."""


def describe_stage(progress: Progress, stage: str, detail: str) -> None:
    """Pass a detail of a stage, such as the host of a download, to a callback that has `describe`."""
    describe = getattr(progress, "describe", None)
    if describe is not None:
        describe(stage, detail)


def print_progress(progress: Progress, text: str) -> None:
    """Pass a line of text, such as the metrics of an epoch, to a callback that has `print_line`."""
    print_line = getattr(progress, "print_line", None)
    if print_line is not None:
        print_line(text)


def format_duration(seconds: float) -> str:
    """Return seconds as a rounded duration.

    >>> format_duration(600)
    '10 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
