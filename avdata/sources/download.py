"""Downloading a dataset's sources: planned, in parallel, resumable, proven byte for byte.

The files go to `<cache>/sources/NAME`, or to a folder of the user's. A file is under its name only when it
is whole and has the manifest's checksum. `.avdata/` in that folder holds archives on their way and
`attempts.jsonl`, a line for every attempt that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack, overload

from avdata.errors import UsageError
from avdata.manifest import Manifest, load_manifest
from avdata.recipe import Recipe, load_recipe
from avdata.sources.download_plan import ClipChoice, DownloadPlan, plan_download
from avdata.sources.download_run import DownloadProgress, DownloadReport, DownloadRun, Progress
from avdata.sources.source_dir import lock_source_dir
from avdata.storage.paths import source_dir

__all__ = ["DownloadOptions", "DownloadProgress", "DownloadReport", "download"]


class DownloadOptions(TypedDict, total=False):
    """The keyword arguments of `download` besides `dry_run`."""

    output: Path | str | None
    limit: int | None
    split: str | None
    split_by: str | None
    keys: Sequence[str] | None
    connections: int | None
    bandwidth: float | None
    rehash: bool
    manifest: Manifest | str | Path | None
    progress: Progress | None
    arrived: Callable[[Path], None] | None


@overload
def download(
    recipe: str | Path | Recipe, *, dry_run: Literal[False] = ..., **options: Unpack[DownloadOptions]
) -> DownloadReport: ...
@overload
def download(
    recipe: str | Path | Recipe, *, dry_run: Literal[True], **options: Unpack[DownloadOptions]
) -> DownloadPlan: ...
def download(
    recipe: str | Path | Recipe,
    *,
    output: Path | str | None = None,
    limit: int | None = None,
    split: str | None = None,
    split_by: str | None = None,
    keys: Sequence[str] | None = None,
    dry_run: bool = False,
    connections: int | None = None,
    bandwidth: float | None = None,
    rehash: bool = False,
    manifest: Manifest | str | Path | None = None,
    progress: Progress | None = None,
    arrived: Callable[[Path], None] | None = None,
) -> DownloadPlan | DownloadReport:
    """Download a dataset's sources, or what is missing of them.

        report = avdata.download("cremad", limit=100)
        avdata.prepare("cremad", source=report.root, output="out")

    Ctrl-C stops within a second, and the same call goes on from the byte.

    Args:
        recipe: a recipe's name, a path to a recipe file, or a Recipe.
        output: the folder for the files; None is `<cache>/sources/NAME`.
        limit: the files of so many clips only, where the dataset comes in single files.
        split: the files of `train`, `val` or `test` only, likewise.
        split_by: the way of splitting; None is the recipe's default.
        keys: the files of these clips only, likewise and in this order; `()` fetches the lists and other
            files that belong to no clip.
        dry_run: only say what would be done.
        connections: at once; None is 16 for small files and 4 for large ones.
        bandwidth: bytes a second, over all connections together; None is no cap.
        rehash: read and prove the files on disk again, even those that did not change since they were proven.
        manifest: instead of the bundled one.
        progress: shown how far it is.
        arrived: called with each file that is in place and proven, in the caller's thread; while it works,
            at most some 50 further files are fetched.

    Returns:
        The plan for `dry_run`, else the report.

    Raises:
        UsageError: there is no such recipe or split, or the dataset is not downloaded but generated.
        SourceError: files could not be had; all others are in place, and the next call fetches only those.
        DiskError: the disk is too small, full, or may not be written to.
    """
    recipe = load_recipe(recipe)
    facts = _load_manifest(recipe, manifest)
    root = Path(output) if output is not None else source_dir(recipe.name)
    choice = ClipChoice(recipe.check_split(split_by), limit, split, None if keys is None else tuple(keys))
    if dry_run:
        return plan_download(recipe, facts, root, choice, rehash=rehash)
    run = DownloadRun(
        facts,
        progress or (lambda moment: None),
        arrived or (lambda path: None),
        connections=connections,
        bandwidth=bandwidth,
    )
    with lock_source_dir(root):
        return run.complete(recipe, root, choice, rehash=rehash)


def _load_manifest(recipe: Recipe, manifest: Manifest | str | Path | None) -> Manifest:
    facts = manifest if isinstance(manifest, Manifest) else load_manifest(manifest or recipe.name)
    if not facts.sources:
        msg = f"{recipe.name} has no sources to download"
        hint = "its clips are generated: run avdata prepare" if recipe.generated else None
        raise UsageError(msg, hint=hint)
    return facts
