"""The command `avdata prepare`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
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
from avdata.cli.options import (
    ConfigFile,
    DryRun,
    Json,
    Quiet,
    RecipeName,
    Rehash,
    SplitBy,
    Task,
    choice,
    output_option,
    parse_task_options,
    settings_option,
)
from avdata.cli.sources import print_license

if TYPE_CHECKING:
    from avdata.config.schema import Config
    from avdata.pipeline.planning import PreparationPlan
    from avdata.pipeline.prepare import PreparedSet

EXIT_QUARANTINE = 3


Source = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Directory, archive or URL of the source files, or pattern of tars (default: download them).",
    ),
]

Preset = Annotated[
    str | None,
    choice("--preset", "avdata.config.presets:PRESETS", "Settings preset: {choices} (default: snnergy)."),
]

AudioSource = Annotated[
    str | None,
    choice(
        "--audio-source",
        "avdata.config.schema:AudioConfig.source",
        "Audio to use: {choices}; sets audio.source (default: auto).",
    ),
]

GroupLeakage = Annotated[
    str | None,
    choice(
        "--group-leakage",
        "avdata.config.schema:SelectConfig.group_leakage",
        "Train clips whose group is also in val or test: {choices} (default: keep).",
    ),
]

Limit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Prepare at most N clips, in proportion to splits and labels."),
]

TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Set an option of the recipe, such as label=json:emotion; repeat for more (see `avdata info`).",
    ),
]

Engine = Annotated[
    str, choice("--engine", "avdata.pipeline.engines:ENGINES", "Engine that runs the workers: {choices}.")
]

RayAddress = Annotated[str, typer.Option(metavar="ADDRESS", help="Address of the Ray cluster.")]

Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Number of worker processes (default: number of CPUs); 0 works in this process.",
    ),
]

MaxQuarantine = Annotated[
    float, typer.Option(min=0, max=1, metavar="SHARE", help="Maximum share of quarantined clips.")
]

ManifestFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Manifest of the source files (default: the bundled one)."),
]

Checksums = Annotated[
    bool, typer.Option("--checksums/--no-checksums", help="Verify the checksums of the source files.")
]

KeepSources = Annotated[
    bool,
    typer.Option(
        "--keep-sources/--no-keep-sources",
        help="Keep downloaded files, or delete each when its shard is finished.",
    ),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that has other settings.")]


def prepare(
    recipe: RecipeName,
    output: Annotated[str, output_option("Directory or URL of the prepared dataset.")],
    source: Source = None,
    preset: Preset = None,
    config: ConfigFile = None,
    settings: Annotated[list[str] | None, settings_option("video.num_frames=8")] = None,
    split_by: SplitBy = None,
    audio_source: AudioSource = None,
    group_leakage: GroupLeakage = None,
    limit: Limit = None,
    task: Task = None,
    task_option: TaskOption = None,
    engine: Engine = "local",
    ray_address: RayAddress = "auto",
    workers: Workers = None,
    max_quarantine: MaxQuarantine = 0.05,
    manifest: ManifestFile = None,
    checksums: Checksums = True,
    rehash: Rehash = False,
    keep_sources: KeepSources = True,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prepare a dataset as aligned, verified WebDataset shards; run again to resume."""
    from avdata.pipeline.engines import find_engine

    if workers is None:
        workers = 0 if find_engine(engine).is_cluster else os.cpu_count() or 1
    recipe = f"{recipe}-{task}" if task else recipe
    shortcuts = {
        "select.split_by": split_by, "audio.source": audio_source, "select.group_leakage": group_leakage,
        "select.limit": limit,
    }  # fmt: skip
    common: dict[str, Any] = {
        "source": source, "config": _resolve_config(recipe, preset, config, shortcuts, settings or []),
        "task_options": parse_task_options(task_option or []),
        "manifest": manifest, "checksums": checksums, "workers": workers, "rehash": rehash,
    }  # fmt: skip
    if source is None and not (quiet or as_json):
        print_license(recipe)
    if dry_run:
        _dry_run(recipe, output, common, quiet=quiet, as_json=as_json)
        return
    common |= {
        "max_quarantine": max_quarantine, "overwrite": overwrite, "keep_sources": keep_sources,
        "engine": engine, "ray_address": ray_address,
    }  # fmt: skip
    _run(recipe, output, common, quiet=quiet, as_json=as_json)


def _dry_run(recipe: str, output: str, options: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from avdata.pipeline.planning import plan_preparation

    with show_progress(quiet=quiet or as_json) as progress:
        plan = plan_preparation(recipe, progress=progress, **options)
    _show_plan(plan, output, options["workers"], as_json=as_json)


def _run(recipe: str, output: str, options: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from avdata import prepare as run

    with show_progress(quiet=quiet or as_json) as progress:
        prepared = run(recipe, output=output, progress=progress, **options)
    _show_prepared(prepared, as_json=as_json)
    if prepared.over_quarantine:
        raise typer.Exit(EXIT_QUARANTINE)


def _resolve_config(
    recipe: str, preset: str | None, file: Path | None, shortcuts: Mapping[str, object], settings: list[str]
) -> Config:
    """Return the config of a file, overridden by the options, then by `--set`."""
    from avdata.config.overrides import merge_overrides, parse_setting, read_config_file
    from avdata.recipe import load_recipe

    overrides = read_config_file(file) if file else {}
    options = [f"{name}={value}" for name, value in shortcuts.items() if value is not None]
    for setting in [*options, *settings]:
        overrides = merge_overrides(overrides, parse_setting(setting))
    return load_recipe(recipe).configure(preset, overrides)


def _show_plan(plan: PreparationPlan, output: str, workers: int, *, as_json: bool) -> None:
    from collections import Counter

    from avdata.pipeline.planning import estimate_seconds_per_clip

    counts = plan.counts()
    quarantine = dict(Counter(str(clip.reason) for clip in plan.quarantined))
    seconds = estimate_seconds_per_clip(plan) * len(plan.clips) / max(workers, 1)
    if as_json:
        print_json(
            {
                "recipe": plan.recipe.name,
                "output": str(output),
                "clips": len(plan.clips),
                "splits": counts,
                "quarantine": quarantine,
                "shards": len(plan.jobs),
                "bytes": plan.bytes(),
                "seconds": round(seconds, 1),
                "config_hash": plan.config.hash,
            }
        )
        return
    labels = [label for label in plan.recipe.labels if any(label in split for split in counts.values())]
    rows = [(label, *(f"{split.get(label, 0):,}" for split in counts.values())) for label in labels]
    total = ("all", *(f"{sum(split.values()):,}" for split in counts.values()))
    print_table(("label", *counts), [*rows, total])
    print_line(
        f"{len(plan.clips):,} clips → {len(plan.jobs):,} shards of {format_bytes(plan.bytes())}, in {output}"
    )
    print_line(
        f"about {format_duration(max(seconds, 1))} with {max(workers, 1)} workers,"
        " estimated from the first clips"
    )
    for reason, count in sorted(quarantine.items()):
        print_line(f"quarantine: {count:,} {reason}")


def _show_prepared(prepared: PreparedSet, *, as_json: bool) -> None:
    from avdata.storage.remote import is_url

    if as_json:
        print_json(
            {
                "output": str(prepared.root),
                "samples": prepared.samples,
                "splits": {name: split["samples"] for name, split in prepared.info["splits"].items()},
                "quarantine": prepared.quarantined,
                "quarantine_share": round(prepared.quarantine_share, 6),
                "config_hash": prepared.info["config_hash"],
                "ok": not prepared.over_quarantine,
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
        for name, split in prepared.info["splits"].items()
    ]
    print_table(("split", "samples", "shards", "size"), rows)
    next_step = (
        f'Stream them with: avdata.open("{prepared.root}")'
        if is_url(prepared.root)
        else f"Inspect them with: avdata report {shlex.quote(str(prepared.root))}"
    )
    print_line(f"{prepared.samples:,} sample{'s' * (prepared.samples != 1)} in {prepared.root}. {next_step}")
    _show_quarantine(prepared)


def _show_quarantine(prepared: PreparedSet) -> None:
    from avdata.errors import QuarantineReason

    for reason, count in prepared.quarantined.items():
        print_line(f"quarantine: {count:,} {reason}: {QuarantineReason(reason).description}")
    if prepared.over_quarantine:
        print_error(
            f"{prepared.quarantine_share:.1%} of the clips were quarantined, more than --max-quarantine"
            f" {prepared.max_quarantine:.1%}",
            f"{prepared.root}/quarantine.parquet lists them; avdata report shows how to fix them."
            " The prepared samples are valid",
        )
