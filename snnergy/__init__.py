"""SNNergy: a spiking network with linear-cost cross-modal attention, and its trainer."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
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


class _Package(ModuleType):
    """Keeps `snnergy.report` the function: importing a submodule would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _DOORS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
