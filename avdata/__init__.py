"""Public audio-visual datasets, aligned to the frame, as verified WebDataset shards.

    import avdata

    avdata.mock("cremad", "raw", clips=60)
    avdata.prepare("cremad", source="raw", output="out")
    for batch in avdata.open("out", split="train", shuffle=True).loader(batch_size=32): ...

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avdata.config.schema import Config
    from avdata.errors import AvdataError, QuarantineReason, SampleFlag, SourceError, UsageError
    from avdata.hub.publish import publish
    from avdata.hub.pull import pull
    from avdata.pipeline.prepare import PreparedSet, prepare
    from avdata.progress import tqdm_progress
    from avdata.recipe import Clip, Recipe, load_recipe, recipe_names
    from avdata.reporting.report import report
    from avdata.shards.verify import verify
    from avdata.sources.download import download
    from avdata.streaming.batch import AVBatch
    from avdata.streaming.dataset import open_dataset as open
    from avdata.streaming.mixture import mix
    from avdata.testing.mock_dataset import create_mock_dataset as mock

_EXPORTS = {
    "AVBatch": ("streaming.batch", "AVBatch"),
    "AvdataError": ("errors", "AvdataError"),
    "Clip": ("recipe", "Clip"),
    "Config": ("config.schema", "Config"),
    "SampleFlag": ("errors", "SampleFlag"),
    "PreparedSet": ("pipeline.prepare", "PreparedSet"),
    "QuarantineReason": ("errors", "QuarantineReason"),
    "Recipe": ("recipe", "Recipe"),
    "SourceError": ("errors", "SourceError"),
    "UsageError": ("errors", "UsageError"),
    "tqdm_progress": ("progress", "tqdm_progress"),
    "download": ("sources.download", "download"),
    "load_recipe": ("recipe", "load_recipe"),
    "mix": ("streaming.mixture", "mix"),
    "mock": ("testing.mock_dataset", "create_mock_dataset"),
    "open": ("streaming.dataset", "open_dataset"),
    "prepare": ("pipeline.prepare", "prepare"),
    "publish": ("hub.publish", "publish"),
    "pull": ("hub.pull", "pull"),
    "recipe_names": ("recipe", "recipe_names"),
    "report": ("reporting.report", "report"),
    "verify": ("shards.verify", "verify"),
}

__all__ = [
    "AVBatch",
    "AvdataError",
    "Clip",
    "Config",
    "PreparedSet",
    "QuarantineReason",
    "Recipe",
    "SampleFlag",
    "SourceError",
    "UsageError",
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
    "tqdm_progress",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  # a third of what the import would cost

        return version("avdata")
    if name not in _EXPORTS:
        msg = f"module 'avdata' has no attribute {name!r}"
        raise AttributeError(msg)
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(f"avdata.{module}"), attribute)
