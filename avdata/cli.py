"""The `avdata` command: each subcommand parses, calls one public function, and prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli_export import export
from avdata.cli_hub import publish, pull
from avdata.cli_prepare import prepare
from avdata.cli_show import doctor, report
from avdata.cli_sources import Name, download, manifests, mock
from avdata.terminal import (
    Version,
    as_size,
    complain,
    print_json,
    print_table,
    run_command,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from avdata.manifest import Manifest

app = typer.Typer(
    name="avdata",
    help="Public audio-visual datasets, aligned to the frame, as verified WebDataset shards.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps:  avdata mock cremad raw && avdata prepare cremad --source raw --out out",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@app.callback()
def _options(
    version: Version = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["AVDATA_DEBUG"] = "1"


def recipes(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the names.")] = False,
    as_json: Json = False,
) -> None:
    """List the datasets that can be prepared."""
    from avdata.manifest import load_manifest
    from avdata.recipe import load_recipe, recipe_names

    found = [(load_recipe(name), load_manifest(name)) for name in recipe_names()]
    if as_json:
        print_json(
            [
                {"name": recipe.name, "title": recipe.title, "licence": facts.licence.id}
                for recipe, facts in found
            ]
        )
        return
    if quiet:
        for recipe, _ in found:
            say(recipe.name)
        return
    rows = [(recipe.name, recipe.title, str(len(recipe.labels)), facts.licence.id) for recipe, facts in found]
    print_table(("recipe", "dataset", "labels", "licence"), rows)


def info(
    name: Name,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: Json = False,
) -> None:
    """Licence, citation, size, splits, labels, defaults and known bad clips of a dataset."""
    from avdata.recipe import load_recipe

    recipe, facts = load_recipe(name), _facts(name)
    said: dict[str, Any] = {
        "name": recipe.name,
        "title": recipe.title,
        "homepage": facts and facts.homepage,
        "licence": facts and facts.licence.model_dump(),
        "citation": facts and facts.citation,
        "bytes": facts and facts.bytes,
        "expected": facts.expected if facts else {},
        "labels": list(recipe.labels),
        "label_orders": {order: list(labels) for order, labels in recipe.label_orders.items()},
        "background": recipe.background,
        "splits": dict(recipe.splits),
        "default_split": recipe.default_split,
        "known_bad": dict(recipe.known_bad),
        "defaults": recipe.configure(None).model_dump(mode="json"),
    }
    if as_json:
        print_json(said)
        return
    if not quiet:
        _show_info(said)


def _facts(name: str) -> Manifest | None:
    """The facts of a recipe's source; a task's are its recipe's, and a recipe file has none."""
    from avdata.manifest import load_manifest
    from avdata.recipe import recipe_names

    if name.endswith(".py"):
        return None
    return load_manifest(name if name in recipe_names() else name.rpartition("-")[0])


def _show_info(said: dict[str, Any]) -> None:
    rows = [("dataset", said["title"]), *_source_rows(said)]
    rows += [
        ("labels", ", ".join(f"{index} {label}" for index, label in enumerate(said["labels"]))),
        (
            "splits",
            "\n".join(_marked(name, text, said["default_split"]) for name, text in said["splits"].items()),
        ),
        ("known bad", "\n".join(f"{key}: {why}" for key, why in said["known_bad"].items()) or "none"),
        ("defaults", _defaults(said["defaults"])),
    ]
    print_table(("", ""), rows, header=False)


def _source_rows(said: dict[str, Any]) -> list[tuple[str, str]]:
    licence = said["licence"]
    if licence is None:
        return [("source", "a recipe file has no manifest: its licence and checksums are yours to know")]
    return [
        ("homepage", said["homepage"]),
        (
            "licence",
            f"{licence['name']}\npublishing prepared shards: {licence['publish']}. {licence['note']}",
        ),
        ("citation", said["citation"]),
        ("download", as_size(said["bytes"]) if said["bytes"] else "unknown"),
        ("expected", ", ".join(f"{name} {count:,}" for name, count in said["expected"].items())),
    ]


def _marked(name: str, text: str, default: str) -> str:
    return f"{name}{' (default)' if name == default else ''}: {text}"


def _defaults(config: dict[str, Any]) -> str:
    audio, video, align = config["audio"], config["video"], config["align"]
    return (
        f"{align['seconds']} s from the {align['window']}, {video['frames']} steps; {audio['kind']} of"
        f" {audio['n_mels']} bands at {audio['sample_rate']} Hz, hop {audio['hop']};"
        f" {video['frames']} frames of {video['size']}×{video['size']}"
    )


def verify(
    out: Annotated[Path, typer.Argument(help="Folder of a prepared set.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check every checksum, count, shape, label and split of a prepared set."""
    from avdata import verify as check

    with show_progress(quiet=quiet or as_json) as progress:
        verdict = check(out, progress=progress)
    if as_json:
        problems = [{"where": problem.where, "what": problem.what} for problem in verdict.problems]
        print_json(
            {"ok": verdict.ok, "samples": verdict.samples, "bytes": verdict.bytes, "problems": problems}
        )
    else:
        for problem in verdict.problems:
            say(f"{problem.where}: {problem.what}")
        if verdict.ok:
            say(f"{out}: {verdict.samples:,} samples, {as_size(verdict.bytes)}, all as written")
        else:
            count = len(verdict.problems)
            complain(
                f"{out}: {count:,} problem{'s' if count > 1 else ''}",
                "prepare the set again with --overwrite",
            )
    if not verdict.ok:
        raise typer.Exit(1)


def inspect(
    out: Annotated[Path, typer.Argument(help="Folder of a prepared set.")],
    key: Annotated[str | None, typer.Argument(help="A sample's key; the first one without.")] = None,
    save_png: Annotated[Path | None, typer.Option(help="Draw the spectrogram above the frames.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: Json = False,
) -> None:
    """Show one sample: times, shapes, label, flags and provenance."""
    from avdata.sample import load_sample

    sample = load_sample(out, key)
    shapes = {"mel": list(sample.mel.shape), "frames": list(sample.frames.shape)}
    if as_json:
        print_json({**sample.row, **shapes, "facts": sample.facts, "members": sample.members})
    elif not quiet:
        low, high = float(sample.mel.min()), float(sample.mel.max())
        rows = [(name, _shown(value)) for name, value in sample.row.items() if name != "sha256"]
        rows += [
            ("mel", f"{shapes['mel']} float16, {low:.2f} … {high:.2f}"),
            ("frames", f"{shapes['frames']} uint8"),
        ]
        rows += [
            ("frame times", _shown(sample.facts["frame_times"])),
            ("step times", _shown(sample.facts["step_times"])),
        ]
        rows += [("members", ", ".join(f"{name} {as_size(size)}" for name, size in sample.members.items()))]
        rows += [(f"{role} file", file["path"]) for role, file in sample.facts["sources"].items()]
        print_table(("", ""), rows, header=False)
    if save_png:
        from avdata.picture import save_picture

        save_picture(sample, save_png)
        if not (quiet or as_json):
            say(f"picture: {save_png}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "–"
    return "–" if value is None else str(value)


app.command(epilog="Example:  avdata recipes")(recipes)
app.command(
    short_help="Licence, splits, labels, defaults of a dataset.", epilog="Example:  avdata info cremad"
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
    epilog="Example:  avdata prepare cremad --source raw --out out/cremad --set video.frames=8 --workers 2",
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
