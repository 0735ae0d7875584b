"""The command `avdata merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from avdata.cli.console import show_progress
from avdata.cli.options import Json, Quiet
from avdata.cli.prepared import show_prepared


def merge(
    parts: Annotated[
        str, typer.Argument(metavar="DIR", help="Directory or URL whose subdirectories are the parts.")
    ],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make one dataset of the parts that `prepare --part` wrote, without copying their shards."""
    from avdata import merge as run

    with show_progress(quiet=quiet or as_json) as progress:
        merged = run(parts, progress=progress)
    show_prepared(merged, as_json=as_json)
