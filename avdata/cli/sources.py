"""The commands about sources: `avdata download`, `avdata mock` and `avdata manifest`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from avdata.cli.console import format_bytes, print_json, print_line, print_note, print_table, show_progress
from avdata.cli.options import Name, Rehash, Task

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def print_license(name: str) -> None:
    """Say what the owner of a dataset allows, before it is downloaded."""
    from avdata.manifest import load_manifest
    from avdata.recipe import load_recipe

    recipe = load_recipe(name)
    if not recipe.generated:
        facts = load_manifest(recipe.name)
        print_note(f"license of {facts.title}: {facts.license.name}. {facts.license.note}")


def download(
    name: Name,
    into: Annotated[Path | None, typer.Option(help="Folder for the files; the cache without.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The files of so many clips only.")] = None,
    split: Annotated[str | None, typer.Option(help="The files of train, val or test only.")] = None,
    split_by: Annotated[str | None, typer.Option(help="Way of splitting; see `avdata info`.")] = None,
    connections: Annotated[int | None, typer.Option(min=1, help="Connections at once.")] = None,
    bandwidth: Annotated[int | None, typer.Option(min=1, help="Cap, bytes a second.")] = None,
    rehash: Rehash = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Download a dataset's sources, proven byte for byte; interrupted, the same command goes on."""
    from avdata.sources.download import DownloadProgress
    from avdata.sources.download import download as fetch

    wanted: dict[str, Any] = {
        "output": into,
        "limit": limit,
        "split": split,
        "split_by": split_by,
        "rehash": rehash,
    }
    if dry_run:
        planned = fetch(name, dry_run=True, **wanted)
        said: dict[str, Any] = {
            "root": str(planned.root), "files": len(planned.files), "bytes": planned.bytes,
            "free": planned.free, "sources": ", ".join(planned.sources), "hosts": ", ".join(planned.hosts),
            "present": planned.present,
            "license": planned.license.name, "notes": " ".join(planned.notes),
        }  # fmt: skip
    else:
        if not (quiet or as_json):
            print_license(name)
        with show_progress(quiet=quiet or as_json, number=format_bytes) as progress:

            def show(moment: DownloadProgress) -> None:
                progress(moment.phase, moment.bytes_done, moment.bytes or moment.bytes_done)

            report = fetch(name, connections=connections, bandwidth=bandwidth, progress=show, **wanted)
        said = {
            "root": str(report.root), "fetched": report.fetched, "received": report.received,
            "present": report.present, "unpacked": report.unpacked, "seconds": round(report.seconds, 1),
            "failed_attempts": report.failed_attempts, "log": str(report.log),
        }  # fmt: skip
    if as_json:
        print_json(said)
        return
    sizes = {"bytes", "free", "received"}
    print_table(
        ("", ""),
        [(key, format_bytes(value) if key in sizes else str(value)) for key, value in said.items()],
        header=False,
    )


def mock(
    name: Name,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    clips: Annotated[int | None, typer.Option(min=1, help="How many clips.")] = None,
    bad: Annotated[bool, typer.Option("--bad", help="Add the dataset's bad cases.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds make equal bytes.")] = 0,
    task: Task = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write a small, faithful copy of a dataset with generated media whose truth is known."""
    from avdata import mock as make

    name = f"{name}-{task}" if task else name
    folder = make(name, out, clips=clips, bad=bad, seed=seed)
    manifest = folder / "manifest.json"  # a recipe file's mock need not write one
    proven = manifest.is_file()
    if as_json:
        print_json({"out": str(folder), "recipe": name, "manifest": str(manifest) if proven else None})
    elif not quiet:
        places = f"{shlex.quote(name)} --source {shlex.quote(str(out))}"
        command = f"avdata prepare {places} --out PREPARED" + " --checksums off" * (not proven)
        print_line(f"{out}: a mock of {name}; prepare it with: {command}")


manifests = typer.Typer(
    help="Check or remake the facts about sources.", no_args_is_help=True, rich_markup_mode=None
)


@manifests.command(epilog="Example:  avdata manifest check")
def check(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only problems.")] = False,
    as_json: Json = False,
) -> None:
    """Check all bundled manifests, offline."""
    from avdata.sources.manifest_check import check_manifests

    found = check_manifests()
    if as_json:
        print_json(found)
    elif any(found.values()) or not quiet:
        rows = [(name, "; ".join(said) or "none") for name, said in found.items() if said or not quiet]
        print_table(("manifest", "problems"), rows)
    if any(found.values()):
        raise typer.Exit(1)


@manifests.command(
    epilog="Example:  avdata manifest build CREMA-D cremad.files.tsv.gz --folder AudioWAV --folder VideoFlash"
)
def build(
    checkout: Annotated[Path, typer.Argument(help="A git checkout whose media are LFS pointers.")],
    out: Annotated[Path, typer.Argument(help="The table to write, NAME.files.tsv.gz.")],
    folders: Annotated[list[str], typer.Option("--folder", help="Folder to list; repeat for more.")],
    commit: Annotated[str, typer.Option(help="The commit to read.")] = "HEAD",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: Json = False,
) -> None:
    """Make a table of files from the LFS pointers of a git checkout."""
    from avdata.sources.git_lfs import build_file_table

    build_file_table(checkout, out, folders, commit=commit)
    if as_json:
        print_json({"table": str(out), "bytes": out.stat().st_size})
    elif not quiet:
        print_line(f"{out} is written")
