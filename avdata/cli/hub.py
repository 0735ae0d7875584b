"""Commands for the Hugging Face Hub: `avdata publish` and `avdata pull`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avdata.cli.console import format_bytes, print_json, print_line, show_progress
from avdata.cli.options import DatasetPath, DryRun, Json, Quiet, output_option

if TYPE_CHECKING:
    from avdata.hub.publish import PublishResult


def publish(
    dataset: DatasetPath,
    repo: Annotated[
        str,
        typer.Option(
            metavar="USER/NAME", help="Publish to this repository of the Hub; it is created if it is missing."
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Publish to this branch.")] = "main",
    i_have_permission: Annotated[
        bool,
        typer.Option("--i-have-permission", help="Confirm that the rights holder permits redistribution."),
    ] = False,
    allow_mock: Annotated[
        bool,
        typer.Option(
            "--allow-mock", help="Publish generated media; the card states that they are generated."
        ),
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Verify a dataset and upload it to the Hugging Face Hub; run again to resume."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from avdata import publish as upload

    if quiet or as_json:
        disable_progress_bars()
    with show_progress(quiet=quiet or as_json) as progress:
        result = upload(
            dataset, repo, private=private, revision=revision, i_have_permission=i_have_permission,
            allow_mock=allow_mock, dry_run=dry_run, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(asdict(result))
    else:
        _print_result(result, revision, dry_run=dry_run)


def _print_result(result: PublishResult, revision: str, *, dry_run: bool) -> None:
    if dry_run:
        for name in result.uploaded:
            print_line(f"would upload {name}")
        for name in result.removed:
            print_line(f"would remove {name}")
    verb = "would be uploaded" if dry_run else "uploaded"
    print_line(
        f"{len(result.uploaded):,} files, {format_bytes(result.bytes)}, {verb};"
        f" {len(result.removed):,} removed"
    )
    if dry_run:
        return
    suffix = "" if revision == "main" else f"@{revision}"
    print_line(f"{result.url} ({result.revision}, tag {result.tag})")
    print_line("import avdata")
    print_line(f'data = avdata.open("hf://datasets/{result.repo}{suffix}", split="train", shuffle=True)')


def pull(
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the Hugging Face Hub.")],
    output: Annotated[
        Path | None, output_option("Write to this directory (default: the name of the repository).")
    ] = None,
    revision: Annotated[
        str, typer.Option(metavar="REVISION", help="Download this branch, tag or commit.")
    ] = "main",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download a dataset from the Hugging Face Hub and verify its checksums; run again to resume."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from avdata import pull as fetch

    if quiet or as_json:
        disable_progress_bars()
    root = fetch(repo, output or Path(repo.rpartition("/")[2]), revision=revision)
    if as_json:
        print_json({"output": str(root), "repo": repo, "revision": revision})
        return
    print_line(f"Downloaded {root}. Verify it with: avdata verify {root}")
