"""The commands about the Hugging Face Hub: `avdata publish` and `avdata pull`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from avdata.cli.console import format_bytes, print_json, print_line, show_progress

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def publish(
    out: Annotated[Path, typer.Argument(help="Folder of a prepared set.")],
    repo: Annotated[str, typer.Option(help="Where to, user/name; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Only its owners see it.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to publish on.")] = "main",
    i_have_permission: Annotated[
        bool, typer.Option("--i-have-permission", help="The owners allowed it; the card says so.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and stop.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check a prepared set and put it on the Hugging Face Hub; interrupted, the same command goes on."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from avdata.hub.publish import publish as put

    if quiet or as_json:
        disable_progress_bars()
    with show_progress(quiet=quiet or as_json) as progress:
        done = put(
            out, repo, private=private, revision=revision, i_have_permission=i_have_permission,
            dry_run=dry_run, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(asdict(done))
        return
    if dry_run:
        for name in done.uploaded:
            print_line(f"would upload {name}")
        for name in done.removed:
            print_line(f"would remove {name}")
    verb = "would be uploaded" if dry_run else "uploaded"
    print_line(
        f"{len(done.uploaded):,} files, {format_bytes(done.bytes)}, {verb}; {len(done.removed):,} removed"
    )
    if dry_run:
        return
    at = "" if revision == "main" else f"@{revision}"
    print_line(f"{done.url} ({done.revision}, tag {done.tag})")
    print_line("import avdata")
    print_line(f'data = avdata.open("hf://datasets/{done.repo}{at}", split="train", shuffle=True)')


def pull(
    repo: Annotated[str, typer.Argument(help="user/name on the Hugging Face Hub.")],
    into: Annotated[Path | None, typer.Option(help="Folder to write; the set's name without.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch a published set, proven byte for byte; interrupted, the same command goes on."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from avdata.hub.pull import pull as fetch

    if quiet or as_json:
        disable_progress_bars()
    root = fetch(repo, into or Path(repo.rpartition("/")[2]), revision=revision)
    if as_json:
        print_json({"out": str(root), "repo": repo, "revision": revision})
        return
    print_line(f"{root}: fetched; look at it with: avdata verify {root}")
