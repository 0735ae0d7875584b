"""The command `avdata prepare`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli.console import (
    print_json,
    print_line,
    show_progress,
)
from avdata.cli.layouts import FbankFrames, MergeVal, show_export
from avdata.cli.options import (
    ConfigFile,
    DryRun,
    GiveUpAfter,
    Json,
    ManifestFile,
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
from avdata.cli.prepared import show_plan, show_prepared, show_quarantine
from avdata.cli.sources import print_license

if TYPE_CHECKING:
    from avdata.config.schema import Config

EXIT_QUARANTINE = 3

SHARDS_FOLDER = ".avdata-shards"
"""Folder of the shards of `--export` in the output; removed when the export is complete."""


Source = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Read source files from a directory, archive, URL or pattern of tars (default: download them).",
    ),
]

Preset = Annotated[
    str | None,
    choice(
        "--preset",
        "avdata.config.presets:PRESETS",
        "Start from a settings preset: {choices} (default: snnergy).",
    ),
]

AudioSource = Annotated[
    str | None,
    choice(
        "--audio-source",
        "avdata.config.schema:AudioConfig.source",
        "Use this audio: {choices}; sets audio.source (default: auto).",
    ),
]

GroupLeakage = Annotated[
    str | None,
    choice(
        "--group-leakage",
        "avdata.config.schema:SelectConfig.group_leakage",
        "Keep or drop train clips whose group is also in val or test: {choices} (default: keep).",
    ),
]

Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Prepare at most N clips, in proportion to splits and labels; quarantined ones are not replaced"
        " (default: all).",
    ),
]

Part = Annotated[
    str | None,
    typer.Option(
        metavar="I/N", help="Prepare only part I of N, such as 3/100, for `avdata merge` (default: all)."
    ),
]

TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Set an option of the recipe, such as label=json:emotion; repeat for more"
        " (default: none, see `avdata info`).",
    ),
]

Engine = Annotated[
    str, choice("--engine", "avdata.pipeline.engines:ENGINES", "Run the workers with this engine: {choices}.")
]

RayAddress = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Connect to the Ray cluster at this address.")
]

RayOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Set requests of a Ray worker: num_cpus, num_gpus, memory, resources.NAME; or log_to_driver=true"
        " (default: num_cpus=1).",
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Start N worker processes (default: number of CPUs); 0 uses this process.",
    ),
]

MaxQuarantine = Annotated[
    float,
    typer.Option(
        min=0, max=1, metavar="SHARE", help="Exit with code 3 if a larger share of the clips is quarantined."
    ),
]

AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing", help="Quarantine clips whose files cannot be downloaded (not_downloaded)."
    ),
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

ExportLayout = Annotated[
    str | None,
    choice(
        "--export",
        "avdata.layouts:EXPORT_LAYOUTS",
        "Write the file layout of existing training code, with its preset, and keep no shards: {choices}"
        " (default: write shards).",
    ),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that has other settings.")]


def prepare(
    recipe: RecipeName,
    output: Annotated[str, output_option("Write the dataset to this directory or URL.", can_be_url=True)],
    source: Source = None,
    preset: Preset = None,
    config: ConfigFile = None,
    settings: Annotated[list[str] | None, settings_option("video.num_frames=8")] = None,
    split_by: SplitBy = None,
    audio_source: AudioSource = None,
    group_leakage: GroupLeakage = None,
    limit: Limit = None,
    part: Part = None,
    task: Task = None,
    task_option: TaskOption = None,
    engine: Engine = "local",
    ray_address: RayAddress = "auto",
    ray_option: RayOption = None,
    workers: Workers = None,
    max_quarantine: MaxQuarantine = 0.05,
    allow_missing: AllowMissing = False,
    give_up_after: GiveUpAfter = None,
    manifest: ManifestFile = None,
    checksums: Checksums = True,
    rehash: Rehash = False,
    keep_sources: KeepSources = True,
    export: ExportLayout = None,
    fbank_frames: FbankFrames = None,
    merge_val: MergeVal = False,
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
    layout_settings: Mapping[str, Any] = {}
    layout_options = {"fbank_frames": fbank_frames, "merge_val": merge_val}
    if export and not preset:
        preset, layout_settings = _layout_defaults(export)
    elif not export:
        _refuse_layout_options(layout_options)
    shortcuts = {
        "select.split_by": split_by, "audio.source": audio_source, "select.group_leakage": group_leakage,
        "select.limit": limit, "select.part": part,
    }  # fmt: skip
    common: dict[str, Any] = {
        "source": source, "config": _resolve_config(
            recipe, preset, config, shortcuts, settings or [], layout_settings
        ),
        "task_options": parse_task_options(task_option or []),
        "manifest": manifest, "checksums": checksums, "workers": workers, "rehash": rehash,
        "give_up_after": give_up_after,
    }  # fmt: skip
    if source is None and not (quiet or as_json):
        print_license(recipe)
    if dry_run:
        _dry_run(recipe, output, common, quiet=quiet, as_json=as_json)
        return
    common |= {
        "max_quarantine": max_quarantine, "allow_missing": allow_missing, "overwrite": overwrite,
        "keep_sources": keep_sources, "engine": engine, "ray_address": ray_address,
        "ray_options": parse_task_options(ray_option or [], "--ray-option", "num_cpus=2"),
    }  # fmt: skip
    if export:
        _run_export(recipe, output, export, layout_options, common, quiet=quiet, as_json=as_json)
    else:
        _run(recipe, output, common, quiet=quiet, as_json=as_json)


def _refuse_layout_options(options: Mapping[str, object]) -> None:
    """Refuse options of an export without `--export`."""
    from avdata.errors import UsageError

    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        msg = f"{given[0]} is an option of an export."
        raise UsageError(msg, hint="Add --export LAYOUT, or use it with avdata export.")


def _layout_defaults(layout: str) -> tuple[str, Mapping[str, Any]]:
    """Return the preset of a layout, and the settings that differ from it."""
    from avdata.layouts import EXPORT_LAYOUTS

    return EXPORT_LAYOUTS[layout].preset, EXPORT_LAYOUTS[layout].settings


def _dry_run(recipe: str, output: str, options: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from avdata.pipeline.planning import plan_preparation

    with show_progress(quiet=quiet or as_json) as progress:
        plan = plan_preparation(recipe, progress=progress, **options)
    show_plan(plan, output, options["workers"], as_json=as_json)


def _run(recipe: str, output: str, options: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from avdata import prepare as run

    with show_progress(quiet=quiet or as_json) as progress:
        prepared = run(recipe, output=output, progress=progress, **options)
    show_prepared(prepared, as_json=as_json)
    if prepared.over_quarantine:
        raise typer.Exit(EXIT_QUARANTINE)


def _run_export(
    recipe: str,
    output: str,
    layout: str,
    layout_options: dict[str, Any],
    options: dict[str, Any],
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Prepare into a hidden folder of the output, export, and remove the shards."""
    import shutil

    from avdata import export, load_recipe
    from avdata import prepare as run
    from avdata.errors import UsageError
    from avdata.layouts.run import is_exported
    from avdata.storage.remote import is_url

    if is_url(output):
        msg = f"--export writes a local folder, not {output}."
        raise UsageError(msg, hint="Prepare to the URL without --export, and export a local copy.")
    name, config_hash = load_recipe(recipe).name, options["config"].hash
    if is_exported(output, layout, name, config_hash, **layout_options):
        if as_json:
            print_json({"output": output, "layout": layout, "exported_before": True})
        else:
            print_line(f"{output} was exported before with the same settings. Delete it to export again.")
        return
    shards = Path(output, SHARDS_FOLDER)
    with show_progress(quiet=quiet or as_json) as progress:
        prepared = run(recipe, output=shards, progress=progress, **options)
        report = export(shards, output, layout, progress=progress, **layout_options)
    shutil.rmtree(shards)
    show_export(report, as_json=as_json)
    if not as_json:
        show_quarantine(prepared)
    if prepared.over_quarantine:
        raise typer.Exit(EXIT_QUARANTINE)


def _resolve_config(
    recipe: str,
    preset: str | None,
    file: Path | None,
    shortcuts: Mapping[str, object],
    settings: list[str],
    layout: Mapping[str, Any],
) -> Config:
    """Return the config of a layout, overridden by a file, then by the options, then by `--set`."""
    from avdata.config.overrides import merge_overrides, parse_setting, read_config_file
    from avdata.recipe import load_recipe

    overrides = merge_overrides(layout, read_config_file(file) if file else {})
    options = [f"{name}={value}" for name, value in shortcuts.items() if value is not None]
    for setting in [*options, *settings]:
        overrides = merge_overrides(overrides, parse_setting(setting))
    return load_recipe(recipe).configure(preset, overrides)
