"""Tables of plans and prepared datasets."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from avdata.cli.console import format_bytes, print_error, print_json, print_line, print_table
from avdata.progress import format_duration

if TYPE_CHECKING:
    from avdata.pipeline.planning import PreparationPlan
    from avdata.pipeline.prepare import PreparedSet


def show_plan(plan: PreparationPlan, output: str, workers: int, *, as_json: bool) -> None:
    """Print what a preparation would do."""
    from collections import Counter

    from avdata.pipeline.planning import estimate_seconds_per_clip

    counts = plan.counts()
    quarantine = dict(Counter(str(clip.reason) for clip in plan.quarantined))
    seconds = estimate_seconds_per_clip(plan) * plan.clip_count / max(workers, 1)
    if as_json:
        print_json(
            {
                "recipe": plan.recipe.name,
                "output": str(output),
                "clips": plan.clip_count,
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
        f"{plan.clip_count:,} clips → {len(plan.jobs):,} shards of {format_bytes(plan.bytes())}, in {output}"
    )
    print_line(
        f"about {format_duration(max(seconds, 1))} with {max(workers, 1)} workers,"
        " estimated from the first clips"
    )
    for reason, count in sorted(quarantine.items()):
        print_line(f"quarantine: {count:,} {reason}")


def show_prepared(prepared: PreparedSet, *, as_json: bool) -> None:
    """Print the result of a preparation."""
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
    next_step = f"Inspect them with: avdata report {shlex.quote(str(prepared.root))}"
    print_line(f"{prepared.samples:,} sample{'s' * (prepared.samples != 1)} in {prepared.root}. {next_step}")
    show_quarantine(prepared)


def show_quarantine(prepared: PreparedSet) -> None:
    """Print the number of clips in quarantine by reason."""
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
