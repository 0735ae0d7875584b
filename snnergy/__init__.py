"""SNNergy: a spiking network with linear-cost cross-modal attention, and its trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnergy.model import FUSIONS, PRESETS, ModelConfig, SNNergy, build, recalibrate
    from snnergy.report import report

_DOORS = {
    **dict.fromkeys(("FUSIONS", "PRESETS", "ModelConfig", "SNNergy", "build", "recalibrate"), "model"),
    "report": "report",
}

__all__ = ["FUSIONS", "PRESETS", "ModelConfig", "SNNergy", "build", "recalibrate", "report"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _DOORS:
        msg = f"module 'snnergy' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"snnergy.{_DOORS[name]}"), name)
