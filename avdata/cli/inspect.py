"""The commands that show: `avdata report`, a prepared set as a page, and `avdata doctor`, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli.console import (
    format_bytes,
    print_error,
    print_json,
    print_line,
    print_table,
    show_progress,
)
from avdata.cli.options import Quiet

if TYPE_CHECKING:
    from avdata.doctor import Check


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
            print_line(f"{problem.where}: {problem.what}")
        if verdict.ok:
            print_line(f"{out}: {verdict.samples:,} samples, {format_bytes(verdict.bytes)}, all as written")
        else:
            count = len(verdict.problems)
            print_error(
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
    from avdata.shards.sample import load_sample

    sample = load_sample(out, key)
    shapes = {"mel": list(sample.mel.shape), "frames": list(sample.frames.shape)}
    if as_json:
        print_json({**sample.row, **shapes, "facts": sample.metadata, "members": sample.members})
    elif not quiet:
        low, high = float(sample.mel.min()), float(sample.mel.max())
        rows = [(name, _format_value(value)) for name, value in sample.row.items() if name != "sha256"]
        rows += [
            ("mel", f"{shapes['mel']} float16, {low:.2f} … {high:.2f}"),
            ("frames", f"{shapes['frames']} uint8"),
        ]
        rows += [
            ("frame times", _format_value(sample.metadata["frame_times"])),
            ("step times", _format_value(sample.metadata["step_times"])),
        ]
        rows += [
            ("members", ", ".join(f"{name} {format_bytes(size)}" for name, size in sample.members.items()))
        ]
        rows += [(f"{role} file", file["path"]) for role, file in sample.metadata["sources"].items()]
        print_table(("", ""), rows, header=False)
    if save_png:
        from avdata.reporting.sample_plot import save_sample_plot

        save_sample_plot(sample, save_png)
        if not (quiet or as_json):
            print_line(f"picture: {save_png}")


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(_format_value(item) for item in value) or "–"
    return "–" if value is None else str(value)


def export(
    root: Annotated[Path, typer.Argument(help="A prepared set.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    layout: Annotated[
        str, typer.Option(help="author-npy: arrays as the SNNergy author's script reads them.")
    ] = ("author-npy"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write a prepared set in the layout of another project's training script."""
    from avdata.shards.export import export as write

    with show_progress(quiet=quiet or as_json) as progress:
        written = write(root, out, layout, progress)
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        print_line(str(path))


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def report(
    out: Annotated[Path, typer.Argument(help="Folder of a prepared set.")],
    page: Annotated[Path | None, typer.Option("--to", help="The page; OUT/report.html without.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another set, to show what differs.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the samples of the gallery.")] = 0,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Write one page that shows a prepared set: counts, measures, what was left out, and samples."""
    from avdata.reporting.report import report as write

    with show_progress(quiet=quiet or as_json) as progress:
        path = write(out, page, against=compare, seed=seed, progress=progress)
    size = path.stat().st_size
    if as_json:
        print_json({"page": str(path), "bytes": size})
    else:
        print_line(f"{path} is written, {format_bytes(size)}; it needs no network")
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def doctor(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is missing.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has, and what to do about what is missing."""
    from avdata.doctor import check_environment

    findings = check_environment()
    if as_json:
        print_json([vars(one) for one in findings])
    else:
        marks = {True: "ok", False: "no", None: "–"}
        rows = [
            (marks[one.ok], one.name, _format_check(one)) for one in findings if one.ok is False or not quiet
        ]
        print_table(("", "", ""), rows, header=False)
    if any(one.ok is False and one.needed for one in findings):
        raise typer.Exit(1)


def _format_check(one: Check) -> str:
    return one.found + (f"\n→ {one.advice}" if one.advice else "")
