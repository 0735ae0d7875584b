"""Selection of the best state of a run by its validation, and early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Selection:
    """Best validation so far, and the number of evaluations since.

    Args:
        patience: number of evaluations without improvement after which the run stops; None: never.

    Attributes:
        best: `accuracy`, `score` (see `TrainConfig.select`), `loss`, `epoch`, `step`, `measured` and `rates`
            of the best evaluation.
        stale: number of evaluations after the warm-up since the best one.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self.best: dict[str, Any] | None = None
        self.stale = 0

    def add(self, candidate: dict[str, Any], *, is_warm: bool) -> bool:
        """Count an evaluation and return whether it is the best one.

        Args:
            candidate: see `best`.
            is_warm: the warm-up has ended; before, evaluations do not count for patience.
        """
        self.stale += is_warm
        if self.best is not None and _rank(candidate) <= _rank(self.best):
            return False
        self.best, self.stale = candidate, 0
        return True

    @property
    def is_stalled(self) -> bool:
        """Whether validation has not improved for `patience` evaluations."""
        return self._patience is not None and self.stale >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` restores."""
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.best, self.stale = state["best"], int(state["stale"])


def _rank(candidate: Mapping[str, Any]) -> tuple[float, float]:
    return float(candidate["score"]), -float(candidate["loss"])
