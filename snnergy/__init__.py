"""SNNergy: a spiking network with linear-cost cross-modal attention, and its trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnergy.analysis.report import report
    from snnergy.fusion.registry import FUSIONS
    from snnergy.models.config import PRESETS, ModelConfig
    from snnergy.models.network import SNNergy, build, recalibrate

_EXPORTS = {
    "FUSIONS": "fusion.registry",
    **dict.fromkeys(("PRESETS", "ModelConfig"), "models.config"),
    **dict.fromkeys(("SNNergy", "build", "recalibrate"), "models.network"),
    "report": "analysis.report",
}

__all__ = ["FUSIONS", "PRESETS", "ModelConfig", "SNNergy", "build", "recalibrate", "report"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _EXPORTS:
        msg = f"module 'snnergy' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"snnergy.{_EXPORTS[name]}"), name)
