"""Commands for prepared datasets: `verify`, `inspect`, `stats`, `report`; and `doctor` for the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avdata.cli.console import (
    format_bytes,
    print_error,
    print_json,
    print_line,
    print_page,
    print_table,
    show_progress,
)
from avdata.cli.options import DatasetPath, Json, OpenPage, Quiet, Silent, output_option
from avdata.cli.prepare import Engine, RayAddress
from avdata.cli.sample_tables import LIST_COLUMNS, list_row, sample_rows, show_stats

if TYPE_CHECKING:
    from avdata.doctor import Check

DEFAULT_LIMIT = 20
"""Samples that `inspect --where` lists without `--limit`."""


def verify(
    dataset: DatasetPath,
    engine: Engine = "local",
    ray_address: RayAddress = "auto",
    workers: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Start N worker processes; 0 uses this process, or all CPUs of Ray."
        ),
    ] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Verify every checksum, count, shape, label and split of a prepared dataset."""
    from avdata import verify as check

    with show_progress(quiet=quiet or as_json) as progress:
        result = check(dataset, workers=workers, engine=engine, ray_address=ray_address, progress=progress)
    if as_json:
        problems = [{"where": problem.where, "what": problem.what} for problem in result.problems]
        print_json(
            {
                "ok": result.ok, "samples": result.samples, "bytes": result.bytes,
                "provenance": result.provenance, "problems": problems,
            }
        )  # fmt: skip
    else:
        for problem in result.problems:
            print_line(f"{problem.where}: {problem.what}")
        if result.ok:
            print_line(f"{dataset}: {result.samples:,} samples, {format_bytes(result.bytes)}, no problems")
            print_line(result.provenance)
        else:
            count = len(result.problems)
            print_error(
                f"{dataset}: {count:,} problem{'s' if count > 1 else ''}",
                "prepare the dataset again with --overwrite",
            )
    if not result.ok:
        raise typer.Exit(1)


def inspect(
    dataset: DatasetPath,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Key of the sample (default: the first one).")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="List N samples in a table (default with --where: 20)."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="List samples by a condition on the index, such as \"label_name == 'ANG'\" (default: all).",
        ),
    ] = None,
    save_png: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Plot the spectrogram above the frames to a PNG file (default: no plot)."
        ),
    ] = None,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Show times, shapes, labels, flags and source files of a sample, or list samples."""
    if limit is not None or where is not None:
        _list_samples(dataset, key, save_png, where, limit or DEFAULT_LIMIT, quiet=quiet, as_json=as_json)
        return
    from avdata.shards.sample import load_sample

    sample = load_sample(dataset, key)
    if as_json:
        frames = None if sample.frames is None else list(sample.frames.shape)
        shapes = {"mel": list(sample.mel.shape), "frames": frames}
        print_json({**sample.row, **shapes, "metadata": sample.metadata, "members": sample.members})
    elif not quiet:
        print_table(("", ""), sample_rows(sample), header=False)
    if save_png:
        from avdata.reporting.sample_plot import save_sample_plot

        save_sample_plot(sample, save_png)
        if not (quiet or as_json):
            print_line(f"image: {save_png}")


def _list_samples(
    dataset: str, key: str | None, save_png: Path | None, where: str | None, limit: int,
    *, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    from avdata.errors import UsageError
    from avdata.shards.dataset_files import open_dataset_files
    from avdata.shards.reader import read_index
    from avdata.streaming.filter import parse_filter

    if key is not None or save_png is not None:
        msg = "KEY and --save-png show one sample; --limit and --where list several."
        raise UsageError(msg, hint="Omit KEY and --save-png, or omit --limit and --where.")
    files = open_dataset_files(dataset, "index.parquet")
    index = read_index(files.root, info=files.info)
    if where is not None:
        index = index.filter(parse_filter(where, index.schema))
    rows = index.slice(0, limit).to_pylist()
    if as_json:
        print_json(rows)
    elif not quiet:
        print_table(LIST_COLUMNS, [list_row(row) for row in rows])
        if index.num_rows > len(rows):
            print_line(f"{len(rows):,} of {index.num_rows:,} samples; --limit N lists more.")


def stats(
    dataset: DatasetPath,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Count samples, hours, groups and labels of each split, and summarize durations and offsets."""
    from avdata.shards.summary import summarize_dataset

    summary = summarize_dataset(dataset)
    if as_json:
        print_json(summary)
    elif not quiet:
        show_stats(summary)


def report(
    dataset: DatasetPath,
    output: Annotated[
        Path | None,
        output_option(
            "Write the page to this HTML file (default: DATASET/report.html; for a URL, report.html here)."
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Show the differences from a second dataset (default: none)."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Read source files here, to play audio that the dataset lacks (default: none).",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="SEED", help="Select the samples of the gallery with this seed.")
    ] = 0,
    show: OpenPage = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a report of a prepared dataset: counts, measurements, quarantine and samples."""
    from avdata import report as write

    with show_progress(quiet=quiet or as_json) as progress:
        path = write(dataset, output, against=compare, source=source, seed=seed, progress=progress)
    print_page(path, as_json=as_json, quiet=False, show=show)


def doctor(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only problems.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine's libraries, decoders and access, and print how to fix problems."""
    from avdata.doctor import check_environment

    checks = check_environment()
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        marks = {True: "ok", False: "no", None: "–"}
        rows = [
            (marks[check.ok], check.name, _format_check(check))
            for check in checks
            if check.ok is False or not quiet
        ]
        print_table(("", "", ""), rows, header=False)
    if any(check.ok is False and check.needed for check in checks):
        raise typer.Exit(1)


def _format_check(check: Check) -> str:
    return check.found + (f"\n→ {check.advice}" if check.advice else "")
