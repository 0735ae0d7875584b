"""Preparation of a dataset: plan the shards, run the shard jobs, finalize the dataset.

    avdata.prepare("cremad", source="raw", output="out", workers=2)

The same call resumes a killed run; see `journal`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.config.overrides import Overrides
from avdata.config.schema import Config
from avdata.errors import QuarantineReason, SourceError, UsageError
from avdata.features.audio import feature_filterbank
from avdata.manifest import load_manifest
from avdata.pipeline.engines import EngineSpec, find_engine
from avdata.pipeline.engines.ray_options import RayOptions, parse_ray_options
from avdata.pipeline.finalize import Provenance, finalize_dataset
from avdata.pipeline.journal import STATE_DIR
from avdata.pipeline.output import Output, check_complete, check_plan, open_output, read_finished
from avdata.pipeline.planning import PreparationPlan, plan_preparation, resolve_config
from avdata.pipeline.row_spool import RowSpool
from avdata.progress import Progress
from avdata.recipe import Recipe, load_recipe
from avdata.storage.paths import check_path_encoding, source_dir

if TYPE_CHECKING:
    from avdata.pipeline.shard_job import ShardJob
    from avdata.pipeline.source_prefetch import SourcePrefetcher

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSet:
    """Finished dataset of `prepare`.

    Attributes:
        root: folder or URL of the dataset.
        info: content of dataset.json.
        max_quarantine: allowed share of clips in quarantine.
    """

    root: Path | str
    info: Mapping[str, Any]
    max_quarantine: float

    def __repr__(self) -> str:
        """Return one line: location, samples by split, clips in quarantine."""
        splits = ", ".join(f"{name} {split['samples']:,}" for name, split in self.info["splits"].items())
        quarantined = sum(self.quarantined.values())
        return f"PreparedSet({str(self.root)!r}: {splits} samples; {quarantined:,} clips in quarantine)"

    @property
    def samples(self) -> int:
        """Number of samples in all splits."""
        return sum(split["samples"] for split in self.info["splits"].values())

    @property
    def quarantined(self) -> dict[str, int]:
        """Number of clips in quarantine by reason, including clips excluded on purpose."""
        return dict(self.info["quarantine"])

    @property
    def quarantine_share(self) -> float:
        """Share of the requested clips that are in quarantine. Clips excluded on purpose do not count."""
        excluded = sum(
            self.quarantined.get(reason, 0) for reason in (QuarantineReason.KNOWN_BAD, QuarantineReason.LEAK)
        )
        lost = sum(self.quarantined.values()) - excluded
        return lost / max(lost + self.samples, 1)

    @property
    def over_quarantine(self) -> bool:
        """Whether `quarantine_share` exceeds `max_quarantine`; the command line then exits with 3."""
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
    task_options: Mapping[str, str] | None = None,
    keep_sources: bool = True,
    workers: int = 1,
    max_quarantine: float = 0.05,
    allow_missing: bool = False,
    give_up_after: float | None = None,
    overwrite: bool = False,
    engine: str = "local",
    ray_address: str = "auto",
    ray_options: Mapping[str, object] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> PreparedSet:
    """Prepare a dataset: turn its source files into verified shards. The same call resumes a killed run.

    Args:
        recipe: name of a recipe, path to a recipe file, or a Recipe.
        source: folder, archive or URL of the source files, or a pattern of tars; None downloads them, or
            generates them for `synthetic`. Single files are prepared during the download.
        output: folder or object storage URL of the prepared dataset.
        config: settings, or overrides of the preset.
        preset: name of a preset; None is the recipe's variant of `snnergy`.
        manifest: manifest to verify the source files with, instead of the source's own or the bundled one.
        checksums: verify checksums; dataset.json records False.
        rehash: recompute the checksums of all files, also of unchanged ones.
        task_options: options of the recipe by name; see `avdata info RECIPE`. They are added to those of
            `config`.
        keep_sources: False removes downloaded files when their shard is finished, so that the files of about
            `workers` shards are on disk at a time. Unpacked archives are removed at the end.
        workers: number of worker processes; 0 works in this process.
        max_quarantine: share of clips in quarantine above which the result is `over_quarantine`.
        allow_missing: quarantine clips whose files cannot be downloaded (`not_downloaded`) instead of raising
            an error. This applies to datasets of single files.
        give_up_after: seconds without any file from a host after which the download of its files fails
            (default: 600).
        overwrite: replace a prepared dataset with other settings.
        engine: `local` for processes of this machine, or `ray` for a cluster, all of whose CPUs work with
            `workers=0`.
        ray_address: address of the Ray cluster.
        ray_options: what each worker requests of it: `num_cpus`, `num_gpus`, `memory` (such as `4GiB`) and
            `resources.NAME`; and `log_to_driver`, with which this process prints the workers' output.
        progress: called with the stage, the number done and the total number, of clips or bytes.

    Returns:
        The finished dataset.

    Raises:
        UsageError: a name or setting is invalid.
        AvdataError: the source or the output cannot be used; other files in `output` are unchanged.
    """
    recipe = load_recipe(recipe)
    spec = find_engine(engine)
    spec.check(ray_address)
    requested = parse_ray_options(ray_options or {})
    if not keep_sources:
        _check_removable(recipe, source, spec)
    for path in (output, source or ""):
        check_path_encoding(path)
    target = open_output(output)
    config = resolve_config(recipe, config, preset, task_options)
    identity = {"name": recipe.name, "version": recipe.version, "config": config.model_dump(mode="json")}
    target.check(identity, overwrite=overwrite)
    finished = None if overwrite else read_finished(target)
    if finished is None:
        target.check_writable()
    is_download = source is None and not recipe.generated
    if finished and checksums and is_download and _is_up_to_date(finished, recipe, config, manifest):
        check_complete(target, finished)
        _warn_about_missing(target, finished)
        return PreparedSet(target.location, finished, max_quarantine)
    plan = plan_preparation(
        recipe, source=source, config=config, manifest=manifest, checksums=checksums, rehash=rehash,
        workers=workers, give_up_after=give_up_after, progress=progress,
    )  # fmt: skip
    run = _PreparationRun(
        target,
        plan,
        spec,
        ray_address,
        requested,
        workers,
        keep_sources,
        allow_missing,
        give_up_after,
        progress,
    )
    finished = None if overwrite else read_finished(target)
    if finished:
        check_plan(target, finished, run.provenance.plan_hash)
        check_complete(target, finished)
        _warn_about_missing(target, finished)
        return PreparedSet(target.location, finished, max_quarantine)
    with target.lock():
        if overwrite:
            target.remove()
        target.write_plan(identity)
        spool = RowSpool(target.root / STATE_DIR)
        info = finalize_dataset(target.root, run.provenance, run.entries(spool), spool, plan.quarantined)
        target.finalize()
    if not (keep_sources or plan.pending_files):
        shutil.rmtree(plan.source)
    return PreparedSet(target.location, info, max_quarantine)


def _check_removable(recipe: Recipe, source: str | Path | None, engine: EngineSpec) -> None:
    """Raise UsageError unless the run can remove the source files that it used."""
    if source is not None or recipe.generated:
        msg = "Source files were not downloaded, so they cannot be removed."
        raise UsageError(msg, hint="Omit --no-keep-sources: files of --source are never changed.")
    if engine.is_cluster:
        msg = "Source files cannot be removed during a preparation on a cluster."
        raise UsageError(msg, hint="Omit --no-keep-sources, or use an engine of this machine.")


def _is_up_to_date(
    info: Mapping[str, Any], recipe: Recipe, config: Config, manifest: str | Path | None
) -> bool:
    """Return whether a finished dataset was made from the files that would be downloaded now.

    Return False if the plan needs no files: the plans are compared then.
    """
    from avdata.pipeline.source_prefetch import clips_from_manifest, streamable_files  # noqa: PLC0415  # only for downloads

    facts = load_manifest(Path(manifest) if manifest is not None else recipe.name)
    files = streamable_files(recipe, facts)
    if files:
        split_by = recipe.check_split(config.select.split_by)
        with suppress(SourceError):
            clips_from_manifest(recipe, source_dir(recipe.name), files, split_by)
            return False
    return bool(info["source"].get("manifest") == facts.hash)


@dataclass
class _PreparationRun:
    """Run of the shard jobs of a plan."""

    output: Output
    plan: PreparationPlan
    engine: EngineSpec
    address: str
    ray_options: RayOptions
    workers: int
    keep_sources: bool
    allow_missing: bool
    give_up_after: float | None
    progress: Progress

    @cached_property
    def jobs(self) -> list[ShardJob]:
        """Jobs in the order of the plan."""
        from avdata.pipeline.shard_job import ShardJob  # noqa: PLC0415  # torch loads only for decoding

        recipe, config = self.plan.recipe, self.plan.config
        return [
            ShardJob(
                self.output,
                name,
                clips,
                config,
                recipe.labels,
                recipe.background,
                source=self.plan.source_url,
                allow_missing=self.allow_missing,
            )
            for name, clips in self.plan.jobs
        ]

    @cached_property
    def provenance(self) -> Provenance:
        """Inputs of the dataset."""
        fingerprints = [job.fingerprint for job in self.jobs]
        return Provenance(self.plan, fingerprints)

    def entries(self, spool: RowSpool) -> list[dict[str, Any]]:
        """Run the unfinished jobs, and return the journal entries of all jobs in the plan's order.

        The rows are stored in `spool`; the entries have their number, `samples`.
        """
        from avdata.pipeline.shard_job import exclude_clip, run_shard_job  # noqa: PLC0415  # torch loads only for decoding

        entries = {
            job.shard: spool.store(entry)
            for job in self.jobs
            if (entry := self.output.load_entry(job.shard, job.fingerprint)) and not _lacks_downloads(entry)
        }
        self.output.remove_stale_shards(self.plan.recipe.name, entries)
        total = self.plan.clip_count
        done = sum(entry["samples"] + len(entry["quarantine"]) for entry in entries.values())
        self.progress("prepare", done, total)

        def advance(key: str) -> None:
            nonlocal done
            done += 1
            self.progress("prepare", min(done, total), total)

        left = self._unfinished_jobs(entries)
        with ExitStack() as stack:
            prefetcher = self._prefetch_sources(stack, list(left.values()), entries)
            results = self.engine.load()(
                run_shard_job,
                list(left.values()),
                workers=self.workers,
                item_timeout=self.plan.config.quality.timeout,
                exclude=exclude_clip,
                on_item=advance,
                **self._engine_options(prefetcher),
            )
            for entry in stack.enter_context(closing(results)):
                entries[entry["shard"]] = spool.store(entry)
                if prefetcher:
                    prefetcher.release(left[entry["shard"]])
        return [entries[job.shard] for job in self.jobs]

    def _unfinished_jobs(self, entries: Mapping[str, Any]) -> dict[str, ShardJob]:
        """Return the jobs without an entry, by shard, with the filterbank for their workers."""
        left = [job for job in self.jobs if job.shard not in entries]
        filterbank = feature_filterbank(self.plan.config.audio) if left else None
        return {job.shard: replace(job, filterbank=filterbank) for job in left}

    def _engine_options(self, prefetcher: SourcePrefetcher | None) -> dict[str, Any]:
        if self.engine.is_cluster:
            return {"address": self.address, "options": self.ray_options}
        return {"is_ready": prefetcher.is_ready} if prefetcher else {}

    def _prefetch_sources(
        self, stack: ExitStack, left: Sequence[ShardJob], entries: Mapping[str, Any]
    ) -> SourcePrefetcher | None:
        """Start the download of the remaining jobs' files. For a cluster, wait until it is complete."""
        plan = self.plan
        if not plan.pending_files or plan.manifest is None:
            return None
        from avdata.pipeline.source_prefetch import prefetch_sources, remove_source_files, wait_for_all  # noqa: PLC0415  # only for downloads

        if not self.keep_sources:
            for job in self.jobs:
                if job.shard in entries:
                    remove_source_files(job)
        window = None if self.keep_sources else max(self.workers, 1)
        split_by = plan.recipe.check_split(plan.config.select.split_by)
        prefetcher = stack.enter_context(
            prefetch_sources(
                plan.recipe, plan.manifest, plan.source, left,
                split_by=split_by, window=window, allow_missing=self.allow_missing,
                give_up_after=self.give_up_after, progress=self.progress,
            )
        )  # fmt: skip
        if self.engine.is_cluster:
            wait_for_all(prefetcher, left)
        return prefetcher


def _lacks_downloads(entry: Mapping[str, Any]) -> bool:
    """Return whether a shard lacks clips that another download may provide."""
    return any(row["reason"] == QuarantineReason.NOT_DOWNLOADED for row in entry["quarantine"])


def _warn_about_missing(output: Output, info: Mapping[str, Any]) -> None:
    count = info["quarantine"].get(QuarantineReason.NOT_DOWNLOADED, 0)
    if count:
        _log.warning(
            "Clips without downloaded files in %s: %d. Use --overwrite to prepare them.",
            output.location, count,
        )  # fmt: skip
