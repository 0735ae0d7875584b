"""The command that prepares: `avdata prepare`, and what it prints of a plan and of a finished set."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli.console import (
    format_bytes,
    format_duration,
    print_error,
    print_json,
    print_line,
    print_table,
    show_progress,
)
from avdata.cli.options import Rehash, Task, complete_recipe
from avdata.cli.sources import print_license

if TYPE_CHECKING:
    from avdata.pipeline.planning import PreparationPlan
    from avdata.pipeline.prepare import PreparedSet

EXIT_QUARANTINE = 3

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def prepare(
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe's name, or a path to a recipe file.", autocompletion=complete_recipe),
    ],
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
    from avdata.config.overrides import merge_overrides, parse_setting, read_config_file
    from avdata.errors import UsageError
    from avdata.pipeline.planning import plan_preparation
    from avdata.recipe import load_recipe

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
        "select.group_leakage": leaks,
        "select.limit": limit,
    }
    given = [f"{name}={value}" for name, value in shorts.items() if value is not None]
    for setting in [*given, *(settings or [])]:
        overrides = merge_overrides(overrides, parse_setting(setting))
    settled = load_recipe(recipe).configure(preset, overrides)
    common: dict[str, Any] = {
        "source": source, "config": settled, "manifest": manifest, "checksums": checksums == "on",
        "workers": workers, "rehash": rehash,
    }  # fmt: skip
    if source is None and not (quiet or as_json):
        print_license(recipe)
    with show_progress(quiet=quiet or as_json) as progress:
        if dry_run:
            planned = plan_preparation(recipe, progress=progress, **common)
        else:
            done = pipeline(
                recipe,
                output=out,
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


def _show_plan(planned: PreparationPlan, out: str, workers: int, *, as_json: bool) -> None:
    from collections import Counter

    from avdata.pipeline.planning import estimate_seconds_per_clip

    counts = planned.counts()
    lost = dict(Counter(str(one.reason) for one in planned.quarantined))
    seconds = estimate_seconds_per_clip(planned) * len(planned.clips) / max(workers, 1)
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
    print_line(
        f"{len(planned.clips):,} clips → {len(planned.jobs):,} shards of "
        f"{format_bytes(planned.bytes())}, in {out}"
    )
    print_line(
        f"about {format_duration(max(seconds, 1))} with {max(workers, 1)} workers, by the first clips' time"
    )
    for reason, count in sorted(lost.items()):
        print_line(f"quarantine: {count:,} {reason}")


def _show_prepared(done: PreparedSet, *, as_json: bool) -> None:
    from avdata.storage.remote import is_url

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
            format_bytes(sum(s["bytes"] for s in split["shards"])),
        )
        for name, split in done.info["splits"].items()
    ]
    print_table(("split", "samples", "shards", "size"), rows)
    look = (
        f'stream them with: avdata.open("{done.root}")'
        if is_url(done.root)
        else f"look at them with: avdata report {shlex.quote(str(done.root))}"
    )
    print_line(f"{done.samples:,} sample{'s' * (done.samples != 1)} in {done.root}; {look}")
    _show_quarantine(done)


def _show_quarantine(done: PreparedSet) -> None:
    from avdata.errors import QuarantineReason

    for reason, count in done.quarantined.items():
        print_line(f"quarantine: {count:,} {reason}: {QuarantineReason(reason).description}")
    if done.over_quarantine:
        print_error(
            f"{done.quarantine_share:.1%} of the clips were left out, and --max-quarantine is"
            f" {done.max_quarantine:.1%}",
            f"the samples that are there are good; {done.root}/quarantine.parquet names each clip, and"
            " avdata report says what to do",
        )
