"""The `avdata` command: each subcommand parses its options, calls one public function and prints."""

from __future__ import annotations

import typer

from avdata.cli import catalog, hub, inspect, layouts, parts, prepare, sources
from avdata.cli.console import RESUME_HINT, run_command
from avdata.cli.options import add_command, create_app

app = create_app(
    "avdata",
    "Prepare public audio-visual datasets as aligned, verified WebDataset shards.",
    "avdata mock cremad -o raw && avdata prepare cremad --source raw -o out",
)

manifest = typer.Typer(
    help="Check or build manifests of source files.", no_args_is_help=True, rich_markup_mode=None
)

add_command(
    app, catalog.recipes, "avdata recipes", summary="List the datasets: clips, hours, size and license."
)
add_command(
    app, catalog.info, "avdata info cremad", summary="Show size, splits, license and citation of a dataset."
)
add_command(
    app,
    sources.mock,
    "avdata mock cremad --output raw --clips 24",
    summary="Generate a small copy of a dataset.",
)
add_command(
    app,
    sources.download,
    "avdata download cremad --limit 100",
    summary="Download the source files of a dataset and verify known checksums.",
)
add_command(
    app,
    prepare.prepare,
    "avdata prepare cremad --source raw --output out/cremad --set video.num_frames=8",
    summary="Prepare a dataset as aligned, verified shards.",
)
add_command(
    app,
    parts.merge,
    "avdata merge out/parts",
    summary="Merge parts into one dataset.",
)
add_command(
    app,
    inspect.verify,
    "avdata verify out/cremad",
    summary="Verify checksums, counts and shapes.",
)
add_command(
    app,
    inspect.inspect,
    "avdata inspect out/cremad --save-png sample.png",
    summary="Show a sample, or list samples.",
)
add_command(
    app,
    inspect.stats,
    "avdata stats out/cremad --json",
    summary="Count samples, hours, groups and labels.",
)
add_command(
    app,
    inspect.report,
    "avdata report out/cremad --open",
    summary="Write a report of a dataset (HTML).",
)
add_command(
    app,
    layouts.export,
    "avdata export out/cremad author-npy --output npy",
    summary="Write a dataset for existing training code.",
)
add_command(
    app,
    layouts.match,
    "avdata match out/cremad --split-list train.csv",
    summary="Compare a published list with a dataset.",
)
add_command(
    app,
    hub.publish,
    "avdata publish out/cremad --repo me/cremad-av --dry-run",
    summary="Upload a dataset to the Hugging Face Hub.",
)
add_command(
    app,
    hub.pull,
    "avdata pull me/cremad-av --output out/pulled",
    summary="Download and verify a dataset of the Hub.",
)
add_command(app, inspect.doctor, "avdata doctor", summary="Check the libraries and decoders of this machine.")

add_command(manifest, sources.check, "avdata manifest check")
add_command(
    manifest,
    sources.build,
    "avdata manifest build CREMA-D -o cremad.files.tsv.gz --folder AudioWAV --folder VideoFlash",
    summary="Build a table of files from the LFS pointers of a checkout.",
)
app.add_typer(manifest, name="manifest")


def main() -> None:
    """Run the `avdata` command."""
    run_command(app, dict.fromkeys(("download", "export", "prepare", "publish", "pull"), RESUME_HINT))


if __name__ == "__main__":
    main()
