"""The pipeline: survey the source, plan the shards, run them, and finish the set.

    avdata.prepare("cremad", source="raw", out="out", workers=2)

A run that was killed goes on where it was when the same call is made again; see `journal`.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from avdata.cache import cache_root
from avdata.config import Config, Overrides
from avdata.engine import run_jobs
from avdata.errors import MediaError, Reason, SourceError, UsageError
from avdata.finish import Provenance, finish
from avdata.manifest import Manifest, load_manifest
from avdata.outfolder import check_finished, check_out, clear
from avdata.outstore import Store, is_url, journal_of, size_in
from avdata.recipe import Clip, Recipe, load_recipe
from avdata.shards import shard_name
from avdata.sourcestore import mirror
from avdata.survey import Candidate, Quarantined, check_keys, hash_order, select_clips, survey

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, what is done of it, and how much there is: clips."""

ENGINES = ("local", "ray")
SPLITS = ("train", "val", "test")


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
        chosen_out = sum(self.quarantined.get(reason, 0) for reason in (Reason.KNOWN_BAD, Reason.LEAK))
        lost = sum(self.quarantined.values()) - chosen_out
        return lost / max(lost + self.samples, 1)

    @property
    def over_quarantine(self) -> bool:
        """Whether the share is above what was allowed; the command line then exits with 3."""
        return self.quarantine_share > self.max_quarantine


@dataclass(frozen=True)
class Plan:
    """What a preparation will do, before anything is decoded."""

    recipe: Recipe
    config: Config
    source: Path
    manifest: Manifest | None
    jobs: tuple[tuple[str, tuple[Candidate, ...]], ...]
    quarantined: tuple[Quarantined, ...]

    @property
    def clips(self) -> list[Clip]:
        """The clips that will be decoded."""
        return [candidate.clip for _, candidates in self.jobs for candidate in candidates]

    def counts(self) -> dict[str, dict[str, int]]:
        """Clips by split, then by label in canonical order."""
        found = Counter((clip.split, clip.label) for clip in self.clips)
        return {
            split: {label: found[split, label] for label in self.recipe.labels if found[split, label]}
            for split in SPLITS
        }

    def bytes(self) -> int:
        """An estimate of the shards' size: arrays as stored, JPEG at 1.2 bits a pixel and channel."""
        audio, video = self.config.audio, self.config.video
        pixels = video.frames * video.size**2 * (3 if video.colour == "rgb" else 1)
        frames = pixels if video.storage == "npy" else pixels * 0.15
        mel = video.frames * audio.bins * self.config.mel_columns * 2
        return int(len(self.clips) * (mel + frames + 5_000))


def plan(
    recipe: str | Path | Recipe,
    *,
    source: str | Path | None = None,
    config: Config | Overrides | None = None,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checksums: bool = True,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> Plan:
    """Survey a source and plan its shards; writes nothing. The arguments are those of `prepare`."""
    recipe = load_recipe(recipe)
    settled = config if isinstance(config, Config) else recipe.configure(preset, config or {})
    folder = _source_folder(recipe, source, settled, progress)
    facts = _manifest(recipe, folder, manifest) if checksums else None
    clips = list(recipe.clips(folder, recipe.check_split(settled.select.split_by)))
    check_keys(clips)
    chosen, left_out = select_clips(clips, settled.select)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("survey", done, len(chosen))

    good, bad = survey(chosen, folder, settled.audio, facts, threads=max(workers, 1), advance=advance)
    if not good:
        raise _nothing_usable(folder, clips, bad)
    _warn_of_leaks(good)
    return Plan(recipe, settled, folder, facts, _shards(recipe, good, settled), tuple(left_out + bad))


def _source_folder(recipe: Recipe, source: str | Path | None, config: Config, progress: Progress) -> Path:
    if source is not None:
        folder = mirror(str(source)) if is_url(source) else Path(source)
        if not folder.is_dir():
            msg = f"the source {folder} is not a folder"
            raise SourceError(msg, hint="give the folder that holds the dataset's files with --source")
        return folder
    if recipe.generated:
        folder = cache_root() / "generated" / f"{recipe.name}-{recipe.version}"
        if not (folder / "manifest.json").is_file():
            # The manifest is written last, so its presence says that all clips are there.
            recipe.mock(folder, None, False, 0)
        return folder
    from avdata.download import Moment, download  # noqa: PLC0415

    def show(moment: Moment) -> None:
        progress(moment.phase, moment.files_done, moment.files)

    select = config.select
    return download(recipe, limit=select.limit, split_by=select.split_by, progress=show).root


def _manifest(recipe: Recipe, folder: Path, manifest: str | Path | None) -> Manifest:
    if manifest is not None:
        return load_manifest(Path(manifest))
    own = folder / "manifest.json"
    return load_manifest(own if own.is_file() else recipe.name)


def _nothing_usable(folder: Path, clips: Sequence[Clip], bad: Sequence[Quarantined]) -> SourceError:
    counted = Counter(one.reason for one in bad).most_common()
    why = ", ".join(f"{count} {reason}" for reason, count in counted) or "none are left by the selection"
    first = f"; the first: {bad[0].detail}" if bad else ""
    message = f"not one of the {len(clips)} clips in {folder} can be prepared ({why}{first})"
    hints = {
        Reason.LFS_POINTER: "the media were never fetched: run `git lfs pull` there",
        Reason.CHECKSUM: "fetch the files again, or give --checksums off if you changed them yourself",
        Reason.MISSING_AUDIO: "use the videos' own sound with --audio auto, or fetch the audio files",
        Reason.MISSING_VIDEO: "fetch the videos; sound alone makes no audio-visual sample",
    }
    hint = hints.get(counted[0][0], counted[0][0].sentence) if counted else "change --limit or --leaks"
    return SourceError(message, hint=hint)


def _warn_of_leaks(candidates: Sequence[Candidate]) -> None:
    groups: dict[str, set[str]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.clip.group, set()).add(candidate.clip.split)
    leaking = sorted(group for group, splits in groups.items() if "train" in splits and len(splits) > 1)
    if leaking:
        shown = ", ".join(leaking[:3]) + (" …" if len(leaking) > 3 else "")
        log.warning(
            "%d of %d groups (%s) are in train and in another split, as published; --leaks drop-train leaves"
            " their train clips out",
            len(leaking),
            len(groups),
            shown,
        )


def _shards(
    recipe: Recipe, candidates: Sequence[Candidate], config: Config
) -> tuple[tuple[str, tuple[Candidate, ...]], ...]:
    jobs = []
    for split in SPLITS:
        held = [candidate for candidate in candidates if candidate.clip.split == split]
        held.sort(key=lambda candidate: hash_order(candidate.clip.key, config.select.seed))
        size = config.shards.samples
        count = -(-len(held) // size)
        for number in range(count):
            name = shard_name(recipe.name, split, number, count)
            jobs.append((name, tuple(held[number * size : (number + 1) * size])))
    return tuple(jobs)


def seconds_a_clip(planned: Plan, clips: int = 3) -> float:
    """Seconds a clip takes on one core, by preparing the first few; bad ones count as they are."""
    from avdata.features import extract  # noqa: PLC0415

    tried = planned.clips[: clips + 1]
    times = []
    for clip in tried:
        began = time.perf_counter()
        with suppress(MediaError):
            extract(clip, planned.config)
        times.append(time.perf_counter() - began)
    # The first one loads the libraries.
    return statistics.median(times[1:] or times)


def prepare(
    recipe: str | Path | Recipe,
    *,
    source: str | Path | None = None,
    out: str | Path,
    config: Config | Overrides | None = None,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checksums: bool = True,
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
        source: folder or URL that holds the dataset; None downloads it (or generates it, for `synthetic`).
        out: the set's folder, or a URL of object storage; made, gone on with, or found finished.
        config: settings, or overrides over the preset.
        preset: a preset's name; None is `snnergy` as the recipe adapts it.
        manifest: a manifest to prove the files against, instead of the source's own or the bundled one.
        checksums: False takes the files as they are, and dataset.json says so.
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
        AvdataError: the source or the output folder cannot be used; nothing in `out` was harmed.
    """
    from avdata.job import ShardJob, ban, run_shard  # noqa: PLC0415  # torch loads only for decoding

    if engine not in ENGINES:
        msg = f"there is no engine {engine!r}"
        raise UsageError(msg, hint=f"engines: {', '.join(ENGINES)}")
    store = Store(str(out)) if is_url(out) else None
    root = store.scratch if store else Path(out)
    if store:
        store.fetch_state()
    recipe = load_recipe(recipe)
    settled = config if isinstance(config, Config) else recipe.configure(preset, config or {})
    identity = {"name": recipe.name, "version": recipe.version, "config": settled.model_dump(mode="json")}
    check_out(root, identity, overwrite=overwrite)
    planned = plan(
        recipe,
        source=source,
        config=settled,
        manifest=manifest,
        checksums=checksums,
        workers=workers,
        progress=progress,
    )
    jobs = [
        ShardJob(
            root, name, candidates, settled, recipe.labels, recipe.background,
            store=store.url if store else None, source=str(source) if is_url(source) else None,
        )
        for name, candidates in planned.jobs
    ]  # fmt: skip
    provenance = Provenance(recipe, settled, planned.manifest, [job.fingerprint for job in jobs])
    if (root / "dataset.json").is_file() and not overwrite:
        found = check_finished(root, provenance.plan_hash, size_in(root, store), str(out))
        return PreparedSet(store.url if store else root, found, max_quarantine)
    journal = journal_of(root, store.url if store else None)
    with journal.locked():
        if overwrite:
            clear(root)
            if store:
                store.clear()
        journal.write_plan(identity)
        entries = {job.shard: entry for job in jobs if (entry := journal.recall(job.shard, job.fingerprint))}
        total = len(planned.clips)
        done = sum(len(entry["rows"]) + len(entry["quarantine"]) for entry in entries.values())
        progress("prepare", done, total)

        def advance(key: str) -> None:
            nonlocal done
            done += 1
            progress("prepare", min(done, total), total)

        left = [job for job in jobs if job.shard not in entries]
        timeout = settled.quality.timeout
        with closing(
            _engine(engine, ray_address)(
                run_shard, left, workers=workers, item_timeout=timeout, ban=ban, on_item=advance
            )
        ) as results:
            for entry in results:
                entries[entry["shard"]] = entry
        info = finish(root, provenance, [entries[job.shard] for job in jobs], planned.quarantined)
        journal.close()
        if store:
            store.finish()
    return PreparedSet(store.url if store else root, info, max_quarantine)


def _engine(name: str, address: str) -> Callable[..., Any]:
    if name == "local":
        return run_jobs
    from avdata import engine_ray  # noqa: PLC0415

    return partial(engine_ray.run_jobs, address=address)
