"""The `avdata` command: each subcommand parses, calls one public function, and prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli_export import export
from avdata.cli_hub import publish, pull
from avdata.cli_show import doctor, report
from avdata.cli_sources import Rehash, Task, download, manifests, mock, say_licence
from avdata.terminal import (
    as_duration,
    as_size,
    complain,
    print_json,
    print_table,
    run_command,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from avdata.prepare import PreparedSet
    from avdata.shardplan import Plan

EXIT_QUARANTINE = 3

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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["AVDATA_DEBUG"] = "1"


@app.command(epilog="Example:  avdata recipes")
def recipes(as_json: Json = False) -> None:
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
    rows = [(recipe.name, recipe.title, str(len(recipe.labels)), facts.licence.id) for recipe, facts in found]
    print_table(("recipe", "dataset", "labels", "licence"), rows)


@app.command(epilog="Example:  avdata info cremad")
def info(
    name: Annotated[str, typer.Argument(help="A recipe, as `avdata recipes` lists them.")],
    as_json: Json = False,
) -> None:
    """Licence, citation, size, splits, labels, defaults and known bad clips of a dataset."""
    from avdata.manifest import load_manifest
    from avdata.recipe import load_recipe

    recipe, facts = load_recipe(name), load_manifest(name)
    said: dict[str, Any] = {
        "name": recipe.name,
        "title": recipe.title,
        "homepage": facts.homepage,
        "licence": facts.licence.model_dump(),
        "citation": facts.citation,
        "bytes": facts.bytes,
        "expected": facts.expected,
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
    _show_info(said)


def _show_info(said: dict[str, Any]) -> None:
    licence = said["licence"]
    size = as_size(said["bytes"]) if said["bytes"] else "unknown"
    rows = [
        ("dataset", f"{said['title']}\n{said['homepage']}"),
        (
            "licence",
            f"{licence['name']}\npublishing prepared shards: {licence['publish']}. {licence['note']}",
        ),
        ("citation", said["citation"]),
        ("download", size),
        ("expected", ", ".join(f"{name} {count:,}" for name, count in said["expected"].items())),
        ("labels", ", ".join(f"{index} {label}" for index, label in enumerate(said["labels"]))),
        (
            "splits",
            "\n".join(_marked(name, text, said["default_split"]) for name, text in said["splits"].items()),
        ),
        ("known bad", "\n".join(f"{key}: {why}" for key, why in said["known_bad"].items()) or "none"),
        ("defaults", _defaults(said["defaults"])),
    ]
    print_table(("", ""), rows, header=False)


def _marked(name: str, text: str, default: str) -> str:
    return f"{name}{' (default)' if name == default else ''}: {text}"


def _defaults(config: dict[str, Any]) -> str:
    audio, video, align = config["audio"], config["video"], config["align"]
    return (
        f"{align['seconds']} s from the {align['window']}, {video['frames']} steps; {audio['kind']} of"
        f" {audio['n_mels']} bands at {audio['sample_rate']} Hz, hop {audio['hop']};"
        f" {video['frames']} frames of {video['size']}×{video['size']}"
    )


@app.command(
    epilog="Example:  avdata prepare cremad --source raw --out out/cremad --set video.frames=8 --workers 2",
)
def prepare(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path to a recipe file.")],
    out: Annotated[str, typer.Option(help="Folder or URL of the prepared set.")],
    source: Annotated[
        str | None, typer.Option(help="Folder, archive or URL of the dataset; without it, download.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="snnergy (default), snnergy-repeat, ogmge, scmrl.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, section.key=value.")
    ] = None,
    split_by: Annotated[str | None, typer.Option(help="Way of splitting; see `avdata info`.")] = None,
    audio: Annotated[
        str | None, typer.Option(help="auto, wav or container: short for --set audio.source=…")
    ] = None,
    leaks: Annotated[
        str | None, typer.Option(help="keep or drop-train: clips whose group is also held out.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many clips, of all labels.")] = None,
    task: Task = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    ray_address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; all CPUs without. Locally, 0 works in this one.")
    ] = None,
    max_quarantine: Annotated[
        float, typer.Option(min=0, max=1, help="Share of clips that may be left out.")
    ] = 0.05,
    manifest: Annotated[Path | None, typer.Option(help="Manifest to prove the files against.")] = None,
    checksums: Annotated[str, typer.Option(help="on, or off for data you changed.")] = "on",
    rehash: Rehash = False,
    keep_sources: Annotated[
        str, typer.Option(help="yes, or no to remove downloaded files once their shard is done.")
    ] = "yes",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a set with other settings.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn a dataset into aligned, verified WebDataset shards; interrupted, the same command goes on."""
    from avdata import prepare as pipeline
    from avdata.config import merge, parse_setting, read_config_file
    from avdata.errors import UsageError
    from avdata.recipe import load_recipe
    from avdata.shardplan import plan

    if workers is None:
        workers = 0 if engine == "ray" else os.cpu_count() or 1
    for option, value, words in (
        ("--checksums", checksums, ("on", "off")),
        ("--keep-sources", keep_sources, ("yes", "no")),
    ):
        if value not in words:
            msg = f"{option} {value!r} is neither {' nor '.join(words)}"
            raise UsageError(msg)
    overrides = read_config_file(config) if config else {}
    recipe = f"{recipe}-{task}" if task else recipe
    shorts = {
        "select.split_by": split_by,
        "audio.source": audio,
        "select.leaks": leaks,
        "select.limit": limit,
    }
    given = [f"{name}={value}" for name, value in shorts.items() if value is not None]
    for setting in [*given, *(settings or [])]:
        overrides = merge(overrides, parse_setting(setting))
    settled = load_recipe(recipe).configure(preset, overrides)
    common: dict[str, Any] = {
        "source": source, "config": settled, "manifest": manifest, "checksums": checksums == "on",
        "workers": workers, "rehash": rehash,
    }  # fmt: skip
    if source is None and not (quiet or as_json):
        say_licence(recipe)
    with show_progress(quiet=quiet or as_json) as progress:
        if dry_run:
            planned = plan(recipe, progress=progress, **common)
        else:
            done = pipeline(
                recipe,
                out=out,
                max_quarantine=max_quarantine,
                overwrite=overwrite,
                keep_sources=keep_sources == "yes",
                engine=engine,
                ray_address=ray_address,
                progress=progress,
                **common,
            )
    if dry_run:
        _show_plan(planned, out, workers, as_json=as_json)
        return
    _show_prepared(done, as_json=as_json)
    if done.over_quarantine:
        raise typer.Exit(EXIT_QUARANTINE)


def _show_plan(planned: Plan, out: str, workers: int, *, as_json: bool) -> None:
    from collections import Counter

    from avdata.shardplan import seconds_a_clip

    counts = planned.counts()
    lost = dict(Counter(str(one.reason) for one in planned.quarantined))
    seconds = seconds_a_clip(planned) * len(planned.clips) / max(workers, 1)
    said = {
        "recipe": planned.recipe.name,
        "out": str(out),
        "clips": len(planned.clips),
        "splits": counts,
        "quarantine": lost,
        "shards": len(planned.jobs),
        "bytes": planned.bytes(),
        "seconds": round(seconds, 1),
        "config_hash": planned.config.hash,
    }
    if as_json:
        print_json(said)
        return
    labels = [label for label in planned.recipe.labels if any(label in held for held in counts.values())]
    rows = [(label, *(f"{held.get(label, 0):,}" for held in counts.values())) for label in labels]
    total = ("all", *(f"{sum(held.values()):,}" for held in counts.values()))
    print_table(("label", *counts), [*rows, total])
    say(
        f"{len(planned.clips):,} clips → {len(planned.jobs):,} shards of {as_size(planned.bytes())}, in {out}"
    )
    say(f"about {as_duration(seconds)} with {max(workers, 1)} workers, by the first clips' time")
    for reason, count in sorted(lost.items()):
        say(f"quarantine: {count:,} {reason}")


def _show_prepared(done: PreparedSet, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "out": str(done.root),
                "samples": done.samples,
                "splits": {name: split["samples"] for name, split in done.info["splits"].items()},
                "quarantine": done.quarantined,
                "quarantine_share": round(done.quarantine_share, 6),
                "config_hash": done.info["config_hash"],
                "ok": not done.over_quarantine,
            }
        )
        return
    rows = [
        (
            name,
            f"{split['samples']:,}",
            f"{len(split['shards']):,}",
            as_size(sum(s["bytes"] for s in split["shards"])),
        )
        for name, split in done.info["splits"].items()
    ]
    print_table(("split", "samples", "shards", "size"), rows)
    say(f"{done.samples:,} samples in {done.root}")
    _show_quarantine(done)


def _show_quarantine(done: PreparedSet) -> None:
    from avdata.errors import Reason

    for reason, count in done.quarantined.items():
        say(f"quarantine: {count:,} {reason}: {Reason(reason).sentence}")
    if done.over_quarantine:
        complain(
            f"{done.quarantine_share:.1%} of the clips were left out, and --max-quarantine is"
            f" {done.max_quarantine:.1%}",
            f"{done.root}/quarantine.parquet names each clip; the samples that are there are good",
        )


@app.command(epilog="Example:  avdata verify out/cremad")
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


@app.command(epilog="Example:  avdata inspect out/cremad --save-png sample.png")
def inspect(
    out: Annotated[Path, typer.Argument(help="Folder of a prepared set.")],
    key: Annotated[str | None, typer.Argument(help="A sample's key; the first one without.")] = None,
    save_png: Annotated[Path | None, typer.Option(help="Draw the spectrogram above the frames.")] = None,
    as_json: Json = False,
) -> None:
    """Show one sample: times, shapes, label, flags and provenance."""
    from avdata.sample import load_sample

    sample = load_sample(out, key)
    shapes = {"mel": list(sample.mel.shape), "frames": list(sample.frames.shape)}
    if as_json:
        print_json({**sample.row, **shapes, "facts": sample.facts, "members": sample.members})
    else:
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
        if not as_json:
            say(f"picture: {save_png}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "–"
    return "–" if value is None else str(value)


app.command(epilog="Example:  avdata mock cremad raw --clips 24")(mock)
app.command(epilog="Example:  avdata download cremad --limit 100")(download)
app.command(epilog="Example:  avdata export out/cremad npy")(export)
app.command(epilog="Example:  avdata publish out/cremad --repo me/cremad-av --dry-run")(publish)
app.command(epilog="Example:  avdata pull me/cremad-av --into out/cremad")(pull)
app.add_typer(manifests, name="manifest")
app.command(epilog="Example:  avdata report out/cremad --open")(report)
app.command(epilog="Example:  avdata doctor")(doctor)


def main() -> None:
    """Entry point of the `avdata` command."""
    run_command(app)


if __name__ == "__main__":
    main()
