"""The pipeline: plan the shards, run them, and finish the set.

    avdata.prepare("cremad", source="raw", out="out", workers=2)

A run that was killed goes on where it was when the same call is made again; see `journal`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.config import Config, Overrides
from avdata.engine import run_jobs
from avdata.errors import Reason, UsageError
from avdata.finish import Provenance, finish, source_facts
from avdata.journal import Journal
from avdata.manifest import load_manifest
from avdata.outfolder import check_finished, check_out, check_whole, clear
from avdata.recipe import Recipe, load_recipe
from avdata.shardplan import Plan, Progress, plan
from avdata.shards import read_info

if TYPE_CHECKING:
    from avdata.arriving import Arrivals
    from avdata.job import ShardJob


@dataclass(frozen=True)
class PreparedSet:
    """A finished set: where it is, its dataset.json, and whether too many clips were left out."""

    root: Path
    info: Mapping[str, Any]
    max_quarantine: float

    @property
    def samples(self) -> int:
        """Samples in all splits."""
        return sum(split["samples"] for split in self.info["splits"].values())

    @property
    def quarantined(self) -> dict[str, int]:
        """Clips left out by reason, those excluded on purpose among them."""
        return dict(self.info["quarantine"])

    @property
    def quarantine_share(self) -> float:
        """Clips that should have become samples and did not, as a share of those that should have."""
        chosen_out = sum(self.quarantined.get(reason, 0) for reason in (Reason.KNOWN_BAD, Reason.LEAK))
        lost = sum(self.quarantined.values()) - chosen_out
        return lost / max(lost + self.samples, 1)

    @property
    def over_quarantine(self) -> bool:
        """Whether the share is above what was allowed; the command line then exits with 3."""
        return self.quarantine_share > self.max_quarantine


def prepare(
    recipe: str | Path | Recipe,
    *,
    source: str | Path | None = None,
    out: str | Path,
    config: Config | Overrides | None = None,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checksums: bool = True,
    rehash: bool = False,
    keep_sources: bool = True,
    workers: int = 1,
    max_quarantine: float = 0.05,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> PreparedSet:
    """Turn a dataset's files into a verified set of shards.

    Args:
        recipe: a recipe's name, a path to a recipe file, or a Recipe.
        source: the folder or archive that holds the dataset; None downloads it (or generates it, for
            `synthetic`). Single files are prepared as they arrive.
        out: the set's folder; made, gone on with, or found finished.
        config: settings, or overrides over the preset.
        preset: a preset's name; None is `snnergy` as the recipe adapts it.
        manifest: a manifest to prove the files against, instead of the source's own or the bundled one.
        checksums: False takes the files as they are, and dataset.json says so.
        rehash: read all files again, those too that did not change since they were proven.
        keep_sources: False removes downloaded files as soon as their shard is in the journal; the files of
            about `workers` shards are on disk at a time. What comes in archives is removed at the end.
        workers: processes; 0 works in this one.
        max_quarantine: share of clips that may be left out before the set counts as too poor.
        overwrite: replace a set that is there with other settings.
        progress: called with a stage (survey, prepare, or the download's), done and total: clips, files.

    Returns:
        The finished set. Its `over_quarantine` tells whether more clips than allowed were left out.

    Raises:
        UsageError: a name or setting is wrong.
        AvdataError: the source or the output folder cannot be used; nothing in `out` was harmed.
    """
    root = Path(out)
    recipe = load_recipe(recipe)
    if not keep_sources and (source is not None or recipe.generated):
        msg = "only downloaded sources can be removed"
        raise UsageError(msg, hint="leave out --keep-sources no: what you gave with --source stays as it is")
    settled = config if isinstance(config, Config) else recipe.configure(preset, config or {})
    identity = {"name": recipe.name, "version": recipe.version, "config": settled.model_dump(mode="json")}
    check_out(root, identity, overwrite=overwrite)
    if source is None and not recipe.generated and not overwrite:
        done = _already_finished(root, recipe, manifest) if checksums else None
        if done is not None:
            return PreparedSet(root, done, max_quarantine)
    planned = plan(
        recipe,
        source=source,
        config=settled,
        manifest=manifest,
        checksums=checksums,
        rehash=rehash,
        workers=workers,
        progress=progress,
    )
    run = _Run(root, planned, workers, keep_sources, progress)
    if (root / "dataset.json").is_file() and not overwrite:
        return PreparedSet(root, check_finished(root, run.provenance.plan_hash), max_quarantine)
    journal = Journal(root)
    with journal.locked():
        if overwrite:
            clear(root)
        journal.write_plan(identity)
        info = finish(root, run.provenance, run.entries(journal), planned.quarantined)
        journal.close()
    if not (keep_sources or planned.arrives):
        shutil.rmtree(planned.source)
    return PreparedSet(root, info, max_quarantine)


def _already_finished(root: Path, recipe: Recipe, manifest: str | Path | None) -> dict[str, Any] | None:
    """The set, if it was made from just what would be downloaded; then the files need not be there."""
    if not (root / "dataset.json").is_file():
        return None
    facts = load_manifest(Path(manifest) if manifest is not None else recipe.name)
    info = read_info(root)
    return check_whole(root, info) if info["source"] == source_facts(facts) else None


class _Run:
    """The shard jobs of a plan, and what carries them out."""

    def __init__(
        self, root: Path, planned: Plan, workers: int, keep_sources: bool, progress: Progress
    ) -> None:
        from avdata.job import ShardJob  # noqa: PLC0415  # torch loads only for decoding

        recipe, config = planned.recipe, planned.config
        self.planned = planned
        self.workers = workers
        self.keep_sources = keep_sources
        self.progress = progress
        self.jobs = [
            ShardJob(root, name, candidates, config, recipe.labels, recipe.background)
            for name, candidates in planned.jobs
        ]
        prints = [job.fingerprint for job in self.jobs]
        self.provenance = Provenance(recipe, config, planned.manifest, prints)

    def entries(self, journal: Journal) -> list[dict[str, Any]]:
        """The journal's entries of all jobs, those made before and those made now, in the plan's order."""
        from avdata.job import ban, run_shard  # noqa: PLC0415  # torch loads only for decoding

        entries = {
            job.shard: entry for job in self.jobs if (entry := journal.recall(job.shard, job.fingerprint))
        }
        total = len(self.planned.clips)
        done = sum(len(entry["rows"]) + len(entry["quarantine"]) for entry in entries.values())
        self.progress("prepare", done, total)

        def advance(key: str) -> None:
            nonlocal done
            done += 1
            self.progress("prepare", min(done, total), total)

        left = {job.shard: job for job in self.jobs if job.shard not in entries}
        with ExitStack() as stack:
            arrivals = self._arrivals(stack, list(left.values()), entries)
            results = run_jobs(
                run_shard,
                list(left.values()),
                workers=self.workers,
                item_timeout=self.planned.config.quality.timeout,
                ban=ban,
                on_item=advance,
                may_begin=arrivals.may_begin if arrivals else lambda key: True,
            )
            for entry in stack.enter_context(closing(results)):
                entries[entry["shard"]] = entry
                if arrivals:
                    arrivals.finished(left[entry["shard"]])
        return [entries[job.shard] for job in self.jobs]

    def _arrivals(
        self, stack: ExitStack, left: Sequence[ShardJob], entries: Mapping[str, Any]
    ) -> Arrivals | None:
        """The download of what is left to do, under way until the stack is left."""
        planned = self.planned
        if not planned.arrives or planned.manifest is None:
            return None
        from avdata.arriving import arriving, remove_sources  # noqa: PLC0415  # only for downloads

        if not self.keep_sources:
            for job in self.jobs:
                if job.shard in entries:
                    remove_sources(job)
        return stack.enter_context(
            arriving(
                planned.recipe,
                planned.manifest,
                planned.source,
                left,
                split_by=planned.recipe.check_split(planned.config.select.split_by),
                window=None if self.keep_sources else max(self.workers, 1),
                progress=self.progress,
            )
        )
