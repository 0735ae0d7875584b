"""Lines about a training in progress: one when it begins, and one for each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from avdata.progress import Progress, format_duration, print_progress

SHORTEST_S = 1.0
"""Shortest time between two lines of epochs without evaluation."""


class EpochLines:
    """Lines of metrics for a callback of progress.

    Args:
        progress: callback; its method `print_line`, if it has one, receives the lines.
        steps: number of optimizer steps of the run.
        epoch_steps: number of steps per epoch.
    """

    def __init__(self, progress: Progress, steps: int, epoch_steps: int) -> None:
        self._progress, self._steps = progress, steps
        self._epochs = math.ceil(steps / epoch_steps)
        # Time and number of the first step of this process, which compiles kernels.
        self._first: tuple[float, int] | None = None
        self._printed = -math.inf

    def begin(self, text: str) -> None:
        """Print a line about the start."""
        print_progress(self._progress, text)

    def count(self, step: int) -> None:
        """Report that a step is done."""
        if self._first is None:
            self._first = (time.monotonic(), step)
        self._progress("train", step, self._steps)

    def print(
        self, *, epoch: int, step: int, loss: float, accuracy: float, lr: float,
        measured: Mapping[str, Any] | None, best: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        """Print the line of an epoch.

        Args:
            epoch: number of the epoch, from 0.
            step: number of completed steps.
            loss: mean loss of the samples of the epoch.
            accuracy: share of the augmented training samples that were classified correctly.
            lr: learning rate of the last step.
            measured: result of the validation after the epoch; None: there was none.
            best: the best validation so far.
        """
        now = time.monotonic()
        if measured is None and step < self._steps and now - self._printed < SHORTEST_S:
            return
        self._printed = now
        parts = [f"loss {loss:.4f}", f"train accuracy {accuracy:.3f}"]
        if measured is not None:
            parts.append(f"val accuracy {measured['accuracy']:.3f}")
        if best is not None:
            parts.append(f"best {best['accuracy']:.3f} (epoch {best['epoch'] + 1})")
        parts += [f"lr {lr:.2e}", *self._speed(step, now)]
        where = f"epoch {epoch + 1}/{self._epochs}, step {step:,}/{self._steps:,}"
        print_progress(self._progress, f"{where}: {', '.join(parts)}")

    def _speed(self, step: int, now: float) -> list[str]:
        began, before = self._first or (now, step)
        if step == before:
            return []
        seconds = (now - began) / (step - before)
        left = format_duration(seconds * (self._steps - step))
        return [f"{1 / max(seconds, 1e-9):.3g} steps/s", f"{left} left"]


class StageProgress:
    """Callback that reports another stage, and prefixes lines with it."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self._stage, self._progress = stage, progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report the steps of this stage."""
        self._progress(self._stage, done, total)

    def print_line(self, text: str) -> None:
        """Print a line with the name of this stage."""
        print_progress(self._progress, f"{self._stage}: {text}")
