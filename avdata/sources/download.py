"""Download a dataset's sources in parallel, resumable, with checksum verification.

The files go to `<cache>/sources/NAME` or to a folder of the caller's choice. A file has its final name only
after its checksum is verified. The subfolder `.avdata/` holds archives that are not extracted yet and
`attempts.jsonl` with one line for every failed attempt.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack, overload

from avdata.errors import UsageError
from avdata.manifest import Manifest, load_manifest
from avdata.recipe import Recipe, load_recipe
from avdata.sources.download_plan import ClipChoice, DownloadPlan, plan_download
from avdata.sources.download_run import DownloadCallback, DownloadProgress, DownloadReport, DownloadRun
from avdata.sources.failures import read_failed
from avdata.sources.source_dir import lock_source_dir
from avdata.sources.url_schemes import check_source_url
from avdata.sources.zenodo import pin_records, read_pins
from avdata.storage.paths import local_path, source_dir

__all__ = ["DownloadOptions", "DownloadProgress", "DownloadReport", "download"]


class DownloadOptions(TypedDict, total=False):
    """Keyword arguments of `download` except `dry_run`."""

    output: Path | str | None
    limit: int | None
    split: str | None
    split_by: str | None
    keys: Sequence[str] | None
    connections: int | None
    bandwidth: float | None
    give_up_after: float | None
    failed: bool
    allow_missing: bool
    rehash: bool
    manifest: Manifest | str | Path | None
    progress: DownloadCallback | None
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
    give_up_after: float | None = None,
    failed: bool = False,
    allow_missing: bool = False,
    rehash: bool = False,
    manifest: Manifest | str | Path | None = None,
    progress: DownloadCallback | None = None,
    arrived: Callable[[Path], None] | None = None,
) -> DownloadPlan | DownloadReport:
    """Download the sources of a dataset that are missing on disk.

        report = avdata.download("cremad", limit=100)
        avdata.prepare("cremad", source=report.root, output="out")

    Ctrl-C stops within a second. The same call resumes partial files at the byte.

    Args:
        recipe: a recipe's name, the path of a recipe file, or a Recipe.
        output: folder for the files (default: `<cache>/sources/NAME`).
        limit: number of clips, in proportion to splits and labels. This and the next three arguments apply to
            datasets of single files; archives are downloaded completely.
        split: download only the clips of this split: `train`, `val` or `test`.
        split_by: split scheme (default: the recipe's).
        keys: download only these clips, in this order; `()` downloads only the lists and other files that
            belong to no clip.
        dry_run: return the plan without downloading.
        connections: number of parallel connections (default: 16 for small files, 4 for large ones).
        bandwidth: limit in bytes per second for all connections together (default: unlimited).
        give_up_after: seconds without any file from a host after which the files that need it fail
            (default: 600).
        failed: download only the files that failed in the last call.
        allow_missing: return although single files failed; `DownloadReport.failed` lists them.
        rehash: recompute the checksums of all files on disk, also of unchanged ones.
        manifest: manifest to use instead of the bundled one.
        progress: called about ten times a second with a `DownloadProgress`, in the calling thread.
        arrived: called with the path of each downloaded and verified file, in the calling thread. While it
            runs, at most about 50 further files are downloaded.

    Returns:
        A DownloadPlan if `dry_run` is set, else a DownloadReport.

    Raises:
        UsageError: the recipe or split is unknown, a URL of the manifest is impossible, or the dataset is
            generated and has no downloads.
        SourceError: some files failed. All others are in place, and the next call skips them.
        DiskError: the disk is too small, full or not writable.
    """
    command = _retry_command(recipe, output, manifest)
    recipe = load_recipe(recipe)
    facts = _load_manifest(recipe, manifest)
    root = local_path(output) if output is not None else source_dir(recipe.name)
    keys = None if keys is None else tuple(keys)
    paths = read_failed(root) if failed else None
    choice = ClipChoice(recipe.check_split(split_by), limit, split, keys, paths)
    if dry_run:
        return plan_download(recipe, read_pins(facts, root), root, choice, rehash=rehash)
    with lock_source_dir(root):
        run = DownloadRun(
            pin_records(facts, root),
            progress or (lambda state: None),
            arrived or (lambda path: None),
            connections=connections,
            bandwidth=bandwidth,
            give_up_after=give_up_after,
            allow_missing=allow_missing,
            command=command,
        )
        return run.complete(recipe, root, choice, rehash=rehash)


def _retry_command(
    recipe: str | Path | Recipe, output: Path | str | None, manifest: Manifest | str | Path | None
) -> str:
    """Return the command that downloads only the files that failed."""
    words = ["avdata", "download", recipe.name if isinstance(recipe, Recipe) else str(recipe), "--failed"]
    words += [] if output is None else ["--output", str(output)]
    file = manifest.path if isinstance(manifest, Manifest) else manifest
    words += [] if file is None else ["--manifest", str(file)]
    return shlex.join(words)


def _load_manifest(recipe: Recipe, manifest: Manifest | str | Path | None) -> Manifest:
    facts = manifest if isinstance(manifest, Manifest) else load_manifest(manifest or recipe.name)
    if not facts.sources:
        msg = f"Recipe {recipe.name} has no sources to download."
        hint = "Use --source with the files of the dataset."
        if recipe.generated:
            hint = f"Its clips are generated. Run `avdata prepare {recipe.name}`."
        raise UsageError(msg, hint=hint)
    for source in facts.sources:
        for url in source.urls:
            check_source_url(url, f"source {source.name!r} of the manifest")
    return facts
