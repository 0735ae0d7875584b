"""Commands for prepared datasets: `verify`, `inspect`, `report`, `export`; and `doctor` for the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from avdata.cli.options import DatasetPath, Json, OpenPage, Quiet, Silent, choice, output_option

if TYPE_CHECKING:
    from avdata.doctor import Check
    from avdata.shards.sample import StoredSample


def verify(
    dataset: DatasetPath,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Verify every checksum, count, shape, label and split of a prepared dataset."""
    from avdata import verify as check

    with show_progress(quiet=quiet or as_json) as progress:
        result = check(dataset, progress=progress)
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
    save_png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot the spectrogram above the frames to a PNG file.")
    ] = None,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Show times, shapes, label, flags and provenance of a sample."""
    from avdata.shards.sample import load_sample

    sample = load_sample(dataset, key)
    if as_json:
        frames = None if sample.frames is None else list(sample.frames.shape)
        shapes = {"mel": list(sample.mel.shape), "frames": frames}
        print_json({**sample.row, **shapes, "metadata": sample.metadata, "members": sample.members})
    elif not quiet:
        print_table(("", ""), _sample_rows(sample), header=False)
    if save_png:
        from avdata.reporting.sample_plot import save_sample_plot

        save_sample_plot(sample, save_png)
        if not (quiet or as_json):
            print_line(f"image: {save_png}")


def _sample_rows(sample: StoredSample) -> list[tuple[str, str]]:
    low, high = float(sample.mel.min()), float(sample.mel.max())
    members = ", ".join(f"{name} {format_bytes(size)}" for name, size in sample.members.items())
    return [
        *((name, _format_value(value)) for name, value in sample.row.items() if name != "sha256"),
        ("mel", f"{list(sample.mel.shape)} float16, {low:.2f} … {high:.2f}"),
        ("frames", "–" if sample.frames is None else f"{list(sample.frames.shape)} uint8"),
        ("frame times", _format_value(sample.metadata.get("frame_times"))),
        ("step times", _format_value(sample.metadata["step_times"])),
        ("members", members),
        *((f"{role} file", file["path"]) for role, file in sample.metadata["sources"].items()),
    ]


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(_format_value(item) for item in value) or "–"
    return "–" if value is None else str(value)


def export(
    dataset: DatasetPath,
    output: Annotated[Path, output_option("Directory to write.")],
    layout: Annotated[
        str, choice("--layout", "avdata.shards.export:EXPORT_LAYOUTS", "Layout to write: {choices}.")
    ] = "author-npy",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a prepared dataset in the layout of another project's training script."""
    from avdata import export as write

    with show_progress(quiet=quiet or as_json) as progress:
        paths = write(dataset, output, layout, progress)
    if as_json:
        print_json([str(path) for path in paths])
        return
    for path in paths:
        print_line(str(path))


def report(
    dataset: DatasetPath,
    output: Annotated[
        Path | None, output_option("HTML file to write (default: DATASET/report.html).")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="DATASET", help="Second dataset, to show the differences.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="SEED", help="Seed that selects the samples of the gallery.")
    ] = 0,
    show: OpenPage = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a report of a prepared dataset: counts, measurements, quarantine and samples."""
    from avdata import report as write

    with show_progress(quiet=quiet or as_json) as progress:
        path = write(dataset, output, against=compare, seed=seed, progress=progress)
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
