"""The `avdata` command: each subcommand parses, calls one public function, and prints."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from avdata.cli.catalog import info, recipes
from avdata.cli.console import (
    Version,
    run_command,
)
from avdata.cli.hub import publish, pull
from avdata.cli.inspect import doctor, export, inspect, report, verify
from avdata.cli.prepare import prepare
from avdata.cli.sources import download, manifests, mock

app = typer.Typer(
    name="avdata",
    help="Public audio-visual datasets, aligned to the frame, as verified WebDataset shards.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps:  avdata mock cremad raw && avdata prepare cremad --source raw --out out",
)


@app.callback()
def _options(
    version: Version = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["AVDATA_DEBUG"] = "1"


app.command(epilog="Example:  avdata recipes")(recipes)

app.command(
    short_help="License, splits, labels, defaults of a dataset.", epilog="Example:  avdata info cremad"
)(info)

app.command(
    short_help="Write a small, faithful copy of a dataset.",
    epilog="Example:  avdata mock cremad raw --clips 24",
)(mock)

app.command(
    short_help="Download a dataset's sources, proven byte for byte.",
    epilog="Example:  avdata download cremad --limit 100",
)(download)

app.command(
    short_help="Turn a dataset into aligned, verified shards.",
    epilog="Example:  avdata prepare cremad --source raw --out out/cremad --set video.num_frames=8",
)(prepare)

app.command(
    short_help="Check every checksum, count, shape and split of a set.",
    epilog="Example:  avdata verify out/cremad",
)(verify)

app.command(epilog="Example:  avdata inspect out/cremad --save-png sample.png")(inspect)

app.command(
    short_help="Write one page that shows a prepared set.", epilog="Example:  avdata report out/cremad --open"
)(report)

app.command(
    short_help="Write a set in another project's layout.", epilog="Example:  avdata export out/cremad npy"
)(export)

app.command(
    short_help="Put a prepared set on the Hugging Face Hub.",
    epilog="Example:  avdata publish out/cremad --repo me/cremad-av --dry-run",
)(publish)

app.command(
    short_help="Fetch a published set, proven byte for byte.",
    epilog="Example:  avdata pull me/cremad-av --into out/pulled",
)(pull)

app.command(epilog="Example:  avdata doctor")(doctor)

app.add_typer(manifests, name="manifest")


def main() -> None:
    """Entry point of the `avdata` command."""
    run_command(app)


if __name__ == "__main__":
    main()
