"""Commands for other people's code and lists: `export` and `match`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avdata.cli.console import print_json, print_line, print_table, show_progress
from avdata.cli.options import DatasetPath, Json, Quiet, Silent, choice, output_option

if TYPE_CHECKING:
    from avdata.layouts.run import ExportReport
    from avdata.shards.split_list import SplitMatch

MAX_PRINTED_CLIPS = 20

LayoutName = Annotated[
    str,
    typer.Argument(metavar="LAYOUT", help="Layout to write: {avdata.layouts:EXPORT_LAYOUTS}."),
]

FbankFrames = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Cut or zero-pad filterbanks to N rows (default: balancemm 300, kinetics-sounds 1024).",
    ),
]

MergeVal = Annotated[
    bool, typer.Option("--merge-val", help="List the clips of the validation split in the train list too.")
]

Media = Annotated[
    list[str] | None,
    choice(
        "--media",
        "avdata.layouts.folders:MEDIA",
        "Write these files of the layout folders: {choices}; repeat for more (default: all possible).",
    ),
]


def export(
    dataset: DatasetPath,
    output: Annotated[Path, output_option("Write to this directory.")],
    layout: LayoutName = "author-npy",
    fbank_frames: FbankFrames = None,
    merge_val: MergeVal = False,
    media: Media = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a dataset in the file layout of existing training code; run again to resume."""
    from avdata import export as write

    with show_progress(quiet=quiet or as_json) as progress:
        report = write(
            dataset, output, layout, fbank_frames=fbank_frames, merge_val=merge_val,
            media=tuple(media) if media else None, progress=progress,
        )  # fmt: skip
    show_export(report, as_json=as_json)


def show_export(report: ExportReport, *, as_json: bool) -> None:
    """Print the result of an export."""
    if as_json:
        print_json({**vars(report), "output": str(report.output)})
        return
    kept = f", {report.kept:,} of them by an earlier run" if report.kept else ""
    print_line(f"{report.samples:,} clips in {report.output} in the layout {report.layout}{kept}.")
    print_line(f"{report.output}/README.md states how they were made, and their license.")


def match(
    dataset: DatasetPath,
    split_list: Annotated[
        Path, typer.Option(metavar="FILE", help="Read a published list, a clip per line, such as train.csv.")
    ],
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Show which clips of a published list a dataset has, and which it lacks and why."""
    from avdata import match as compare

    result = compare(dataset, split_list)
    if as_json:
        missing = [{"key": clip.key, "reason": clip.reason, "detail": clip.detail} for clip in result.missing]
        print_json(
            {
                "listed": result.listed, "duplicates": result.duplicates, "found": dict(result.found),
                "missing_by_reason": result.missing_by_reason, "missing": missing,
                "unlisted": dict(result.unlisted),
            }
        )  # fmt: skip
    elif not quiet:
        _print_match(dataset, result)


def _print_match(dataset: str, result: SplitMatch) -> None:
    rows = [(split, f"{count:,}", f"{result.unlisted[split]:,}") for split, count in result.found.items()]
    print_table(("split of the dataset", "in the list", "not in the list"), rows)
    repeated = f", {result.duplicates:,} lines repeat one" if result.duplicates else ""
    found = sum(result.found.values())
    print_line(f"{found:,} of {result.listed:,} listed clips are in {dataset}{repeated}.")
    for reason, count in result.missing_by_reason.items():
        print_line(f"missing: {count:,} {reason}")
    for clip in result.missing[:MAX_PRINTED_CLIPS]:
        print_line(f"  {clip.key}: {clip.reason}: {clip.detail}")
    if len(result.missing) > MAX_PRINTED_CLIPS:
        print_line(f"  … and {len(result.missing) - MAX_PRINTED_CLIPS:,} more, which --json lists")
