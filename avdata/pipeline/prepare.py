"""The pipeline: plan the shards, run them, and finish the set.

    avdata.prepare("cremad", source="raw", output="out", workers=2)

A run that was killed goes on where it was when the same call is made again; see `journal`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.config.overrides import Overrides
from avdata.config.schema import Config
from avdata.errors import QuarantineReason, SourceError, UsageError
from avdata.manifest import load_manifest
from avdata.pipeline.engines.local import run_jobs
from avdata.pipeline.finalize import Provenance, checksum_facts, finalize_dataset
from avdata.pipeline.output_dir import (
    check_complete,
    check_finished,
    check_output_dir,
    remove_dataset_files,
    remove_stale_shards,
)
from avdata.pipeline.output_store import ObjectStoreOutput, file_sizes, open_journal
from avdata.pipeline.planning import PreparationPlan, plan_preparation
from avdata.progress import Progress
from avdata.recipe import Recipe, load_recipe
from avdata.shards.reader import read_info
from avdata.storage.paths import check_path_encoding, source_dir
from avdata.storage.remote import is_url

if TYPE_CHECKING:
    from avdata.pipeline.journal import Journal
    from avdata.pipeline.shard_job import ShardJob
    from avdata.pipeline.source_prefetch import SourcePrefetcher

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class PreparedSet:
    """A finished set: where it is, its dataset.json, and whether too many clips were left out."""

    root: Path | str
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
        chosen_out = sum(
            self.quarantined.get(reason, 0) for reason in (QuarantineReason.KNOWN_BAD, QuarantineReason.LEAK)
        )
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
    output: str | Path,
    config: Config | Overrides | None = None,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checksums: bool = True,
    rehash: bool = False,
    keep_sources: bool = True,
    workers: int = 1,
    max_quarantine: float = 0.05,
    overwrite: bool = False,
    engine: str = "local",
    ray_address: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> PreparedSet:
    """Turn a dataset's files into a verified set of shards.

    Args:
        recipe: a recipe's name, a path to a recipe file, or a Recipe.
        source: the folder, archive or URL that holds the dataset; None downloads it (or generates it, for
            `synthetic`). Single files are prepared as they arrive.
        output: the set's folder, or a URL of object storage; made, gone on with, or found finished.
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
        engine: `local`, processes of this machine, or `ray`, all CPUs of a cluster for workers=0.
        ray_address: of the cluster.
        progress: called with a stage (survey, prepare, or the download's), done and total: clips, files.

    Returns:
        The finished set. Its `over_quarantine` tells whether more clips than allowed were left out.

    Raises:
        UsageError: a name or setting is wrong.
        AvdataError: the source or the output folder cannot be used; nothing in `output` was harmed.
    """
    if engine not in ENGINES:
        msg = f"there is no engine {engine!r}"
        raise UsageError(msg, hint=f"engines: {', '.join(ENGINES)}")
    recipe = load_recipe(recipe)
    if not keep_sources and (source is not None or recipe.generated):
        msg = "only downloaded sources can be removed"
        raise UsageError(msg, hint="leave out --keep-sources no: what you gave with --source stays as it is")
    if engine == "ray" and not keep_sources:
        msg = "sources can only be removed as they are used with --engine local"
        raise UsageError(msg, hint="leave out --keep-sources no, or prepare on this machine")
    for place in (output, source or ""):
        check_path_encoding(place)
    store = ObjectStoreOutput(str(output)) if is_url(output) else None
    root = store.scratch if store else Path(output)
    if store:
        store.fetch_state()
    settled = config if isinstance(config, Config) else recipe.configure(preset, config or {})
    identity = {"name": recipe.name, "version": recipe.version, "config": settled.model_dump(mode="json")}
    check_output_dir(root, identity, overwrite=overwrite)
    if source is None and not recipe.generated and not overwrite:
        done = _already_finished(root, recipe, settled, manifest) if checksums else None
        if done is not None:
            check_complete(done, file_sizes(root, store), str(output))
            return PreparedSet(store.url if store else root, done, max_quarantine)
    planned = plan_preparation(
        recipe,
        source=source,
        config=settled,
        manifest=manifest,
        checksums=checksums,
        rehash=rehash,
        workers=workers,
        progress=progress,
    )
    where = {"store": store.url if store else None, "source": str(source) if is_url(source) else None}
    run = _PreparationRun(root, where, planned, workers, keep_sources, progress)
    if (root / "dataset.json").is_file() and not overwrite:
        found = check_finished(root, run.provenance.plan_hash, file_sizes(root, store), str(output))
        return PreparedSet(store.url if store else root, found, max_quarantine)
    journal = open_journal(root, where["store"])
    with journal.lock():
        if overwrite:
            remove_dataset_files(root)
            if store:
                store.remove()
        journal.write_plan(identity)
        entries = run.entries(journal, None if engine == "local" else ray_address)
        info = finalize_dataset(root, run.provenance, entries, planned.quarantined)
        journal.close()
        if store:
            store.finalize()
    if not (keep_sources or planned.pending_files):
        shutil.rmtree(planned.source)
    return PreparedSet(store.url if store else root, info, max_quarantine)


def _already_finished(
    root: Path, recipe: Recipe, config: Config, manifest: str | Path | None
) -> dict[str, Any] | None:
    """The set, if it was made from just what would be downloaded; then the files need not be there.

    None as well where the plan can be made without them: a folder that lacks files is proven against the same
    facts, and only the plan tells.
    """
    if not (root / "dataset.json").is_file():
        return None
    from avdata.pipeline.source_prefetch import clips_from_manifest, streamable_files  # noqa: PLC0415  # only for downloads

    facts = load_manifest(Path(manifest) if manifest is not None else recipe.name)
    info = read_info(root)
    files = streamable_files(recipe, facts)
    if files:
        split_by = recipe.check_split(config.select.split_by)
        with suppress(SourceError):
            clips_from_manifest(recipe, source_dir(recipe.name), files, split_by)
            return None
    return info if info["source"] == checksum_facts(facts) else None


class _PreparationRun:
    """The shard jobs of a plan, and what carries them out."""

    def __init__(
        self,
        root: Path,
        where: Mapping[str, str | None],
        planned: PreparationPlan,
        workers: int,
        keep_sources: bool,
        progress: Progress,
    ) -> None:
        from avdata.pipeline.shard_job import ShardJob  # noqa: PLC0415  # torch loads only for decoding

        recipe, config = planned.recipe, planned.config
        self.planned = planned
        self.workers = workers
        self.keep_sources = keep_sources
        self.progress = progress
        self.jobs = [
            ShardJob(
                root,
                name,
                candidates,
                config,
                recipe.labels,
                recipe.background,
                store=where["store"],
                source=where["source"],
            )
            for name, candidates in planned.jobs
        ]
        prints = [job.fingerprint for job in self.jobs]
        self.provenance = Provenance(recipe, config, planned.manifest, prints)

    def entries(self, journal: Journal, cluster: str | None) -> list[dict[str, Any]]:
        """The journal's entries of all jobs, those made before and those made now, in the plan's order.

        Args:
            journal: of the set.
            cluster: address of the Ray cluster that makes the shards; None makes them on this machine.
        """
        from avdata.pipeline.shard_job import exclude_clip, run_shard_job  # noqa: PLC0415  # torch loads only for decoding

        entries = {
            job.shard: entry for job in self.jobs if (entry := journal.load_entry(job.shard, job.fingerprint))
        }
        remove_stale_shards(journal.root, self.planned.recipe.name, entries)
        total = len(self.planned.clips)
        done = sum(len(entry["rows"]) + len(entry["quarantine"]) for entry in entries.values())
        self.progress("prepare", done, total)

        def advance(key: str) -> None:
            nonlocal done
            done += 1
            self.progress("prepare", min(done, total), total)

        left = {job.shard: job for job in self.jobs if job.shard not in entries}
        with ExitStack() as stack:
            arrivals = self._source_prefetcher(stack, list(left.values()), entries, cluster)
            results = _engine(cluster, arrivals)(
                run_shard_job,
                list(left.values()),
                workers=self.workers,
                item_timeout=self.planned.config.quality.timeout,
                exclude=exclude_clip,
                on_item=advance,
            )
            for entry in stack.enter_context(closing(results)):
                entries[entry["shard"]] = entry
                if arrivals:
                    arrivals.release(left[entry["shard"]])
        return [entries[job.shard] for job in self.jobs]

    def _source_prefetcher(
        self, stack: ExitStack, left: Sequence[ShardJob], entries: Mapping[str, Any], cluster: str | None
    ) -> SourcePrefetcher | None:
        """The download of what is left to do, under way until the stack is left; done first for a cluster."""
        planned = self.planned
        if not planned.pending_files or planned.manifest is None:
            return None
        from avdata.pipeline.source_prefetch import prefetch_sources, remove_source_files, wait_for_all  # noqa: PLC0415  # only for downloads

        if not self.keep_sources:
            for job in self.jobs:
                if job.shard in entries:
                    remove_source_files(job)
        window = None if self.keep_sources else max(self.workers, 1)
        split_by = planned.recipe.check_split(planned.config.select.split_by)
        arrivals = stack.enter_context(
            prefetch_sources(
                planned.recipe, planned.manifest, planned.source, left,
                split_by=split_by, window=window, progress=self.progress,
            )
        )  # fmt: skip
        if cluster is not None:
            wait_for_all(arrivals, left)
        return arrivals


def _engine(cluster: str | None, arrivals: SourcePrefetcher | None) -> Callable[..., Any]:
    if cluster is None:
        return partial(run_jobs, is_ready=arrivals.is_ready) if arrivals else run_jobs
    from avdata.pipeline.engines import ray as engine_ray  # noqa: PLC0415  # Ray is an extra

    return partial(engine_ray.run_jobs, address=cluster)
