"""Commands for source files: `avdata download`, `avdata mock` and `avdata manifest`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from avdata.cli.console import format_bytes, print_json, print_line, print_note, print_table, show_progress
from avdata.cli.options import (
    DryRun,
    GiveUpAfter,
    Json,
    ManifestFile,
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
    output: Annotated[Path | None, output_option("Write to this directory (default: the cache).")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Download only the files of N clips (default: all)."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT", help="Download only the files of one split: train, val or test (default: all)."
        ),
    ] = None,
    split_by: SplitBy = None,
    connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Open at most N connections in parallel (default: 16 for small files, 4 for large).",
        ),
    ] = None,
    bandwidth: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BYTES",
            help="Receive at most this number of bytes per second (default: no limit).",
        ),
    ] = None,
    give_up_after: GiveUpAfter = None,
    manifest: ManifestFile = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Download only the files that failed in the last download.")
    ] = False,
    rehash: Rehash = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download the source files of a dataset and verify known checksums; run again to resume."""
    request: dict[str, Any] = {
        "output": output,
        "limit": limit,
        "split": split,
        "split_by": split_by,
        "rehash": rehash,
        "manifest": manifest,
        "give_up_after": give_up_after,
        "failed": failed,
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
    print_table(("", ""), _plan_rows(result) if dry_run else _report_rows(result), header=False)


def _plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the names and values of a plan, without empty ones."""
    files = f"{plan['files']:,} to download, {plan['present']:,} present"
    rows = [
        ("output", plan["root"]), ("files", files), ("size", _planned_size(plan)),
        ("free disk", format_bytes(plan["free"])), ("sources", plan["sources"]), ("hosts", plan["hosts"]),
        ("license", plan["license"]), ("notes", plan["notes"]),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]


def _planned_size(plan: dict[str, Any]) -> str:
    if not plan["unknown"]:
        return format_bytes(plan["bytes"])
    if plan["unknown"] == plan["files"]:
        return "unknown: the manifest states none"
    return f"{format_bytes(plan['bytes'])}, and {plan['unknown']:,} files of unknown size"


def _report_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    files = (
        f"{report['fetched']:,} downloaded, {report['present']:,} present, {report['unpacked']:,} unpacked"
    )
    rows = [
        ("output", report["root"]), ("files", files),
        ("received", f"{format_bytes(report['received'])} in {report['seconds']} s"),
    ]  # fmt: skip
    failed = report["failed_attempts"]
    return [*rows, ("failed attempts", f"{failed:,}, listed in {report['log']}")] if failed else rows


def _plan_download(recipe: str, request: dict[str, Any]) -> dict[str, Any]:
    from avdata.sources.download import download as fetch

    plan = fetch(recipe, dry_run=True, **request)
    return {
        "root": str(plan.root), "files": len(plan.files), "bytes": plan.bytes, "unknown": plan.unknown,
        "free": plan.free, "sources": ", ".join(plan.sources), "hosts": ", ".join(plan.hosts),
        "present": plan.present,
        "license": plan.license.name, "notes": " ".join(plan.notes),
    }  # fmt: skip


def _run_download(
    recipe: str, request: dict[str, Any], connections: int | None, bandwidth: int | None, *, quiet: bool
) -> dict[str, Any]:
    from avdata.progress import describe_stage
    from avdata.sources.download import DownloadProgress
    from avdata.sources.download import download as fetch

    with show_progress(quiet=quiet) as progress:

        def show(state: DownloadProgress) -> None:
            progress(state.phase, state.bytes_done, state.bytes or state.bytes_done)
            describe_stage(progress, state.phase, state.detail)

        report = fetch(recipe, connections=connections, bandwidth=bandwidth, progress=show, **request)
    return {
        "root": str(report.root), "fetched": report.fetched, "received": report.received,
        "present": report.present, "unpacked": report.unpacked, "seconds": round(report.seconds, 1),
        "failed_attempts": report.failed_attempts, "log": str(report.log),
    }  # fmt: skip


def mock(
    recipe: RecipeName,
    output: Annotated[Path, output_option("Write to this directory.")],
    clips: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Generate N clips (default: the number of the recipe)."),
    ] = None,
    bad: Annotated[bool, typer.Option("--bad", help="Add the known defects of the dataset.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, metavar="SEED", help="Set the seed; equal seeds give equal bytes.")
    ] = 0,
    task: Task = None,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Generate a small copy of a dataset's layout with synthetic media."""
    from avdata import mock as generate

    name = f"{recipe}-{task}" if task else recipe
    with show_progress(quiet=quiet or as_json) as progress:
        root = generate(name, output, clips=clips, bad=bad, seed=seed, progress=progress)
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
    output: Annotated[Path, output_option("Write the table to this file, NAME.files.tsv.gz.")],
    folders: Annotated[
        list[str], typer.Option("--folder", metavar="FOLDER", help="List this directory; repeat for more.")
    ],
    commit: Annotated[str, typer.Option(metavar="COMMIT", help="Read this commit.")] = "HEAD",
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
