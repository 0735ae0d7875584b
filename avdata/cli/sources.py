"""Commands for source files: `avdata download`, `avdata mock` and `avdata manifest`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from avdata.cli.console import format_bytes, print_json, print_line, print_note, print_table, show_progress
from avdata.cli.options import (
    DryRun,
    Json,
    Quiet,
    RecipeName,
    Rehash,
    Silent,
    SplitBy,
    Task,
    output_option,
)


def print_license(recipe_name: str) -> None:
    """Print the license of a dataset before it is downloaded."""
    from avdata.manifest import load_manifest
    from avdata.recipe import load_recipe

    recipe = load_recipe(recipe_name)
    manifest = load_manifest(recipe.name)
    if manifest.sources:
        print_note(f"license of {manifest.title}: {manifest.license.name}. {manifest.license.note}")


def download(
    recipe: RecipeName,
    output: Annotated[Path | None, output_option("Directory to write (default: the cache).")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Download only the files of N clips.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="Download only the files of one split: train, val or test."),
    ] = None,
    split_by: SplitBy = None,
    connections: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum number of parallel connections.")
    ] = None,
    bandwidth: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Maximum number of bytes per second.")
    ] = None,
    rehash: Rehash = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download the source files of a dataset and verify their checksums; run again to resume."""
    request: dict[str, Any] = {
        "output": output,
        "limit": limit,
        "split": split,
        "split_by": split_by,
        "rehash": rehash,
    }
    if dry_run:
        result = _plan_download(recipe, request)
    else:
        if not (quiet or as_json):
            print_license(recipe)
        result = _run_download(recipe, request, connections, bandwidth, quiet=quiet or as_json)
    if as_json:
        print_json(result)
        return
    sizes = {"bytes", "free", "received"}
    print_table(
        ("", ""),
        [(key, format_bytes(value) if key in sizes else str(value)) for key, value in result.items()],
        header=False,
    )


def _plan_download(recipe: str, request: dict[str, Any]) -> dict[str, Any]:
    from avdata.sources.download import download as fetch

    plan = fetch(recipe, dry_run=True, **request)
    return {
        "root": str(plan.root), "files": len(plan.files), "bytes": plan.bytes,
        "free": plan.free, "sources": ", ".join(plan.sources), "hosts": ", ".join(plan.hosts),
        "present": plan.present,
        "license": plan.license.name, "notes": " ".join(plan.notes),
    }  # fmt: skip


def _run_download(
    recipe: str, request: dict[str, Any], connections: int | None, bandwidth: int | None, *, quiet: bool
) -> dict[str, Any]:
    from avdata.sources.download import DownloadProgress
    from avdata.sources.download import download as fetch

    with show_progress(quiet=quiet, number=format_bytes) as progress:

        def show(state: DownloadProgress) -> None:
            progress(state.phase, state.bytes_done, state.bytes or state.bytes_done)

        report = fetch(recipe, connections=connections, bandwidth=bandwidth, progress=show, **request)
    return {
        "root": str(report.root), "fetched": report.fetched, "received": report.received,
        "present": report.present, "unpacked": report.unpacked, "seconds": round(report.seconds, 1),
        "failed_attempts": report.failed_attempts, "log": str(report.log),
    }  # fmt: skip


def mock(
    recipe: RecipeName,
    output: Annotated[Path, output_option("Directory to write.")],
    clips: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of clips (default: the recipe's).")
    ] = None,
    bad: Annotated[bool, typer.Option("--bad", help="Add the known defects of the dataset.")] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="SEED", help="Seed; equal seeds give equal bytes.")] = 0,
    task: Task = None,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Generate a small copy of a dataset's layout with synthetic media."""
    from avdata import mock as generate

    name = f"{recipe}-{task}" if task else recipe
    root = generate(name, output, clips=clips, bad=bad, seed=seed)
    manifest = root / "manifest.json"  # the mock of a recipe file need not write one
    has_manifest = manifest.is_file()
    if as_json:
        path = str(manifest) if has_manifest else None
        print_json({"output": str(root), "recipe": name, "manifest": path})
    elif not quiet:
        arguments = f"{shlex.quote(name)} --source {shlex.quote(str(output))} --output DATASET"
        checksums = "" if has_manifest else " --no-checksums"
        print_line(
            f"Wrote a mock of {name} to {output}. Prepare it with: avdata prepare {arguments}{checksums}"
        )


def check(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only problems.")] = False,
    as_json: Json = False,
) -> None:
    """Check all bundled manifests; needs no network."""
    from avdata.sources.manifest_check import check_manifests

    problems = check_manifests()
    if as_json:
        print_json(problems)
    elif any(problems.values()) or not quiet:
        rows = [(name, "; ".join(texts) or "none") for name, texts in problems.items() if texts or not quiet]
        print_table(("manifest", "problems"), rows)
    if any(problems.values()):
        raise typer.Exit(1)


def build(
    checkout: Annotated[
        Path, typer.Argument(metavar="CHECKOUT", help="Git checkout whose media are LFS pointers.")
    ],
    output: Annotated[Path, output_option("Table to write, NAME.files.tsv.gz.")],
    folders: Annotated[
        list[str], typer.Option("--folder", metavar="FOLDER", help="Directory to list; repeat for more.")
    ],
    commit: Annotated[str, typer.Option(metavar="COMMIT", help="Commit to read.")] = "HEAD",
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Build a table of files and checksums from the LFS pointers of a git checkout."""
    from avdata.sources.git_lfs import build_file_table

    build_file_table(checkout, output, folders, commit=commit)
    if as_json:
        print_json({"table": str(output), "bytes": output.stat().st_size})
    elif not quiet:
        print_line(f"Wrote {output}.")
