"""Prepare audio-visual datasets as aligned, verified WebDataset shards and stream them.

    import avdata

    avdata.mock("cremad", "raw", clips=60)
    avdata.prepare("cremad", source="raw", output="out")
    for batch in avdata.open("out", split="train", shuffle=True).loader(batch_size=32): ...

Functions:
    mock            Write a small copy of a dataset with generated media.
    download        Download the source files of a dataset and verify their checksums.
    plan            Return what `prepare` would do, without writing anything.
    prepare         Write a dataset as aligned, verified shards.
    open            Open splits of a prepared dataset (`open_dataset` is the same).
    mix             Combine several opened datasets into one stream.
    collate         Assemble samples into a batch, for `torch.utils.data.DataLoader`.
    webdataset      Return a stock `webdataset` pipeline over the shards.
    verify          Check every checksum, count, shape, label and split.
    report          Write an HTML page about a prepared dataset.
    export          Write a prepared dataset in the file layout of existing training code.
    merge           Make one dataset of the parts that several preparations wrote.
    match           Compare a published list of clips with a prepared dataset.
    publish, pull   Upload to and download from the Hugging Face Hub.
    load_recipe, recipe_names, load_manifest
                    Look up recipes and the manifests of their sources.
    tqdm_progress   Return a progress callback that draws tqdm bars.

Heavy libraries are imported when a name is first used.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from avdata.config.schema import Config
    from avdata.errors import (
        AvdataError,
        QuarantineReason,
        SampleFlag,
        SourceError,
        UnavailableError,
        UsageError,
    )
    from avdata.hub.publish import PublishResult, publish
    from avdata.hub.pull import pull
    from avdata.layouts.run import ExportReport, export
    from avdata.manifest import Manifest, load_manifest
    from avdata.pipeline.merge import merge
    from avdata.pipeline.planning import PreparationPlan
    from avdata.pipeline.planning import plan_preparation as plan
    from avdata.pipeline.prepare import PreparedSet, prepare
    from avdata.pipeline.verification import verify
    from avdata.progress import tqdm_progress
    from avdata.recipe import Clip, Recipe, load_recipe, recipe_names
    from avdata.reporting.report import report
    from avdata.shards.split_list import SplitMatch, match
    from avdata.shards.verify import VerificationReport
    from avdata.sources.download import DownloadReport, download
    from avdata.streaming.batch import AVBatch, AVSample
    from avdata.streaming.collate import collate
    from avdata.streaming.dataset import AVDataset
    from avdata.streaming.integrations.lightning import AVDataModule
    from avdata.streaming.integrations.webdataset import webdataset
    from avdata.streaming.loader import AVLoader
    from avdata.streaming.map_view import AVMapDataset
    from avdata.streaming.mixture import MixedDataset, mix
    from avdata.streaming.opening import open_dataset
    from avdata.streaming.opening import open_dataset as open
    from avdata.testing.mock_dataset import create_mock_dataset as mock

_EXPORTS = {
    "AVBatch": "streaming.batch",
    "AVDataModule": "streaming.integrations.lightning",
    "AVDataset": "streaming.dataset",
    "AVLoader": "streaming.loader",
    "AVMapDataset": "streaming.map_view",
    "AVSample": "streaming.batch",
    "AvdataError": "errors",
    "Clip": "recipe",
    "Config": "config.schema",
    "DownloadReport": "sources.download",
    "ExportReport": "layouts.run",
    "Manifest": "manifest",
    "MixedDataset": "streaming.mixture",
    "PreparationPlan": "pipeline.planning",
    "PreparedSet": "pipeline.prepare",
    "PublishResult": "hub.publish",
    "QuarantineReason": "errors",
    "Recipe": "recipe",
    "SampleFlag": "errors",
    "SourceError": "errors",
    "SplitMatch": "shards.split_list",
    "UnavailableError": "errors",
    "UsageError": "errors",
    "VerificationReport": "shards.verify",
    "collate": "streaming.collate",
    "download": "sources.download",
    "export": "layouts.run",
    "load_manifest": "manifest",
    "load_recipe": "recipe",
    "match": "shards.split_list",
    "merge": "pipeline.merge",
    "mix": "streaming.mixture",
    "mock": "testing.mock_dataset:create_mock_dataset",
    "open": "streaming.opening:open_dataset",
    "open_dataset": "streaming.opening",
    "plan": "pipeline.planning:plan_preparation",
    "prepare": "pipeline.prepare",
    "publish": "hub.publish",
    "pull": "hub.pull",
    "recipe_names": "recipe",
    "report": "reporting.report",
    "tqdm_progress": "progress",
    "verify": "pipeline.verification",
    "webdataset": "streaming.integrations.webdataset",
}
"""Module of each public name, with `:name` where the module calls it differently."""

__all__ = [
    "AVBatch",
    "AVDataModule",
    "AVDataset",
    "AVLoader",
    "AVMapDataset",
    "AVSample",
    "AvdataError",
    "Clip",
    "Config",
    "DownloadReport",
    "ExportReport",
    "Manifest",
    "MixedDataset",
    "PreparationPlan",
    "PreparedSet",
    "PublishResult",
    "QuarantineReason",
    "Recipe",
    "SampleFlag",
    "SourceError",
    "SplitMatch",
    "UnavailableError",
    "UsageError",
    "VerificationReport",
    "collate",
    "download",
    "export",
    "load_manifest",
    "load_recipe",
    "match",
    "merge",
    "mix",
    "mock",
    "open",
    "open_dataset",
    "plan",
    "prepare",
    "publish",
    "pull",
    "recipe_names",
    "report",
    "tqdm_progress",
    "verify",
    "webdataset",
]


def __getattr__(name: str) -> _typing.Any:
    """Import a public name, `avdata.testing` or `__version__` on first use."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  # importing it costs a third of `import avdata`

        return version("avdata")
    if name == "testing":
        return _importlib.import_module("avdata.testing")
    if name not in _EXPORTS:
        msg = f"module 'avdata' has no attribute {name!r}"
        raise AttributeError(msg)
    module, _, attribute = _EXPORTS[name].partition(":")
    return getattr(_importlib.import_module(f"avdata.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
