"""The command `avdata export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avdata.terminal import print_json, say, show_progress


def export(
    root: Annotated[Path, typer.Argument(help="A prepared set.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    layout: Annotated[
        str, typer.Option(help="author-npy: arrays as the SNNergy author's script reads them.")
    ] = ("author-npy"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write a prepared set in the layout of another project's training script."""
    from avdata.exporters import export as write

    with show_progress(quiet=quiet or as_json) as progress:
        written = write(root, out, layout, lambda done, total: progress("export", done, total))
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        say(str(path))
