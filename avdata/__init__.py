"""Public audio-visual datasets, aligned to the frame, as verified WebDataset shards.

    import avdata

    avdata.mock("cremad", "raw", clips=60)
    avdata.prepare("cremad", source="raw", out="out")
    for batch in avdata.open("out", split="train", shuffle=True).loader(batch_size=32): ...

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avdata.config import Config
    from avdata.download import download
    from avdata.errors import AvdataError, Flag, Reason, SourceError, UsageError
    from avdata.mixture import mix
    from avdata.mock import make_mock as mock
    from avdata.notebook import bars
    from avdata.prepare import PreparedSet, prepare
    from avdata.publish import publish
    from avdata.pull import pull
    from avdata.recipe import Clip, Recipe, load_recipe, recipe_names
    from avdata.report import report
    from avdata.stream import AVBatch
    from avdata.stream import open_dataset as open
    from avdata.verify import verify

_DOORS = {
    "AVBatch": ("stream", "AVBatch"),
    "AvdataError": ("errors", "AvdataError"),
    "Clip": ("recipe", "Clip"),
    "Config": ("config", "Config"),
    "Flag": ("errors", "Flag"),
    "PreparedSet": ("prepare", "PreparedSet"),
    "Reason": ("errors", "Reason"),
    "Recipe": ("recipe", "Recipe"),
    "SourceError": ("errors", "SourceError"),
    "UsageError": ("errors", "UsageError"),
    "bars": ("notebook", "bars"),
    "download": ("download", "download"),
    "load_recipe": ("recipe", "load_recipe"),
    "mix": ("mixture", "mix"),
    "mock": ("mock", "make_mock"),
    "open": ("stream", "open_dataset"),
    "prepare": ("prepare", "prepare"),
    "publish": ("publish", "publish"),
    "pull": ("pull", "pull"),
    "recipe_names": ("recipe", "recipe_names"),
    "report": ("report", "report"),
    "verify": ("verify", "verify"),
}

__all__ = [
    "AVBatch",
    "AvdataError",
    "Clip",
    "Config",
    "Flag",
    "PreparedSet",
    "Reason",
    "Recipe",
    "SourceError",
    "UsageError",
    "bars",
    "download",
    "load_recipe",
    "mix",
    "mock",
    "open",
    "prepare",
    "publish",
    "pull",
    "recipe_names",
    "report",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  # a third of what the import would cost

        return version("avdata")
    if name not in _DOORS:
        msg = f"module 'avdata' has no attribute {name!r}"
        raise AttributeError(msg)
    module, attribute = _DOORS[name]
    return getattr(importlib.import_module(f"avdata.{module}"), attribute)


class _Package(ModuleType):
    """Keeps `avdata.prepare` the function: importing a submodule would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _DOORS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
