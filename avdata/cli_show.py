"""The commands that show: `avdata report`, a prepared set as a page, and `avdata doctor`, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avdata.terminal import as_size, print_json, print_table, say, show_progress

if TYPE_CHECKING:
    from avdata.doctor import Finding

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
    from avdata.report import report as write

    with show_progress(quiet=quiet or as_json) as progress:
        path = write(out, page, against=compare, seed=seed, progress=progress)
    size = path.stat().st_size
    if as_json:
        print_json({"page": str(path), "bytes": size})
    else:
        say(f"{path} is written, {as_size(size)}; it needs no network")
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def doctor(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is missing.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has, and what to do about what is missing."""
    from avdata.doctor import examine

    findings = examine()
    if as_json:
        print_json([vars(one) for one in findings])
    else:
        marks = {True: "ok", False: "no", None: "–"}
        rows = [(marks[one.ok], one.name, _told(one)) for one in findings if one.ok is False or not quiet]
        print_table(("", "", ""), rows, header=False)
    if any(one.ok is False and one.needed for one in findings):
        raise typer.Exit(1)


def _told(one: Finding) -> str:
    return one.found + (f"\n→ {one.advice}" if one.advice else "")
