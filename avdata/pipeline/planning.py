"""Planning: validate the clips of a source and assign them to shards, before anything is decoded.

The plan is made from the files on disk or, for a dataset of single files, from the manifest before the
download. Both give the same plan.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from avdata.clips import ClipList
from avdata.config.overrides import Overrides
from avdata.config.schema import Config, build_config
from avdata.errors import MediaError, SourceError, UsageError
from avdata.features.audio import feature_bins
from avdata.features.face_crop import require_detector
from avdata.manifest import FileEntry, Manifest, load_manifest
from avdata.media.decoders import DECODERS
from avdata.pipeline.plan_checks import PlanChecks, no_usable_clips, warn_about_counts
from avdata.pipeline.remote_source import ListedFiles, fetch_clip
from avdata.pipeline.sharding import SPLITS, PackedClips, assign_shards, sort_for_shards
from avdata.pipeline.tar_files import TarFiles, local_clip
from avdata.pipeline.validation import (
    FileLookup,
    LocalFiles,
    ManifestFiles,
    SourceFile,
    ValidClip,
    validate_clips,
)
from avdata.progress import Progress, describe_stage
from avdata.recipe import Clip, Recipe, load_recipe
from avdata.recipe_checks import check_labels
from avdata.selection import QuarantinedClip, check_clips, select_clips
from avdata.sources.checksums import ChecksumCache
from avdata.sources.object_storage import CONNECTIONS, survey_source
from avdata.sources.tar_source import TarSource, holds_tars, open_tars
from avdata.storage.atomic import write_errors
from avdata.storage.paths import cache_dir
from avdata.storage.remote import is_url

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparationPlan:
    """Plan of a preparation: clips by shard, and the clips in quarantine.

    Attributes:
        recipe: recipe of the dataset.
        config: settings.
        source: folder of the source files.
        manifest: checksums to verify; None skips the verification.
        jobs: path of each shard with its clips, a sequence that is compressed in memory.
        quarantined: clips that cannot be prepared, with their reasons.
        lists: lists of clips, labels or splits that the recipe read, as far as it names them.
        pending_files: whether the source files are downloaded during the preparation.
        source_url: URL of a source in object storage, whose media `source` lacks; else None.
    """

    recipe: Recipe
    config: Config
    source: Path
    manifest: Manifest | None
    jobs: tuple[tuple[str, PackedClips], ...]
    quarantined: tuple[QuarantinedClip, ...]
    lists: tuple[SourceFile, ...] = ()
    pending_files: bool = False
    source_url: str | None = None

    def __repr__(self) -> str:
        """Return one line: recipe, clips by split, shards, clips in quarantine."""
        counts = ", ".join(f"{split} {sum(labels.values()):,}" for split, labels in self.counts().items())
        return (
            f"PreparationPlan({self.recipe.name}: {counts} clips in {len(self.jobs):,} shards;"
            f" {len(self.quarantined):,} clips in quarantine)"
        )

    @property
    def clips(self) -> list[Clip]:
        """Clips that will be decoded."""
        return list(self.iterate_clips())

    def iterate_clips(self) -> Iterator[Clip]:
        """Yield the clips that will be decoded, one shard in memory at a time."""
        return (candidate.clip for _, candidates in self.jobs for candidate in candidates)

    @property
    def clip_count(self) -> int:
        """Number of clips that will be decoded."""
        return sum(len(candidates) for _, candidates in self.jobs)

    @property
    def files(self) -> list[SourceFile]:
        """Files that will be decoded, each once."""
        return list({file.path: file for file in self.iterate_files()}.values())

    def iterate_files(self, without: Container[str] = ()) -> Iterator[SourceFile]:
        """Yield the files of all clips but those with some keys, as often as clips use them."""
        candidates = (clip for _, clips in self.jobs for clip in clips if clip.clip.key not in without)
        return (file for candidate in candidates for file in (candidate.video, candidate.audio) if file)

    @property
    def has_frames(self) -> bool:
        """Whether the samples have frames: False for a dataset of audio."""
        return any(clip.video is not None for clip in self.iterate_clips())

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of clips by split, then by label in canonical order."""
        counts = Counter((clip.split, clip.label) for clip in self.iterate_clips())
        return {
            split: {label: counts[split, label] for label in self.recipe.labels if counts[split, label]}
            for split in SPLITS
        }

    def bytes(self) -> int:
        """Return the estimated size of all shards in bytes.

        Arrays count as stored. Compressed data counts as measured on CREMA-D: 1.2 bits per pixel and channel
        for JPEG, 2.8 for PNG, and 6.4 bits per audio sample for FLAC.
        """
        audio, video = self.config.audio, self.config.video
        pixels = video.num_frames * video.size**2 * (3 if video.color == "rgb" else 1)
        frames = pixels * {"npy": 1.0, "png": 0.35, "jpeg": 0.15}[video.storage]
        seconds = (
            float(self.config.align.window_seconds(video.num_frames)) if self.config.align.seconds else 3
        )
        flac = seconds * audio.sample_rate * 0.8 if audio.flac else 0
        mel = video.num_frames * feature_bins(audio) * self.config.mel_columns * 2
        frames = frames if self.has_frames else 0
        return int(self.clip_count * (mel + frames + flac + 5_000))


def plan_preparation(
    recipe: str | Path | Recipe,
    *,
    source: str | Path | None = None,
    config: Config | Overrides | None = None,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checksums: bool = True,
    rehash: bool = False,
    task_options: Mapping[str, str] | None = None,
    workers: int = 1,
    give_up_after: float | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> PreparationPlan:
    """Validate the clips of a source and plan the shards; write no shard. See `prepare` for the arguments.

    Without `source`, a dataset of single files is planned from its manifest, and only its split lists are
    downloaded. A dataset of archives is downloaded.
    """
    recipe = load_recipe(recipe)
    config = resolve_config(recipe, config, preset, task_options)
    if config.video.resize_mode == "face":
        require_detector()
    DECODERS[config.video.decoder].check_available(config.video)
    folder, facts, files, tars = _sources(
        recipe, source, config, manifest, checksums, give_up_after, progress
    )
    url = str(source) if is_url(source) else None
    split_by = recipe.check_split(config.select.split_by)
    clips = _list_clips(recipe, tars or folder, files, config)
    recipe = _with_source_labels(recipe, tars or folder, clips, config)
    check_clips(clips, recipe.labels, SPLITS)
    if facts is not None:
        warn_about_counts(facts, clips, folder, is_default_split=split_by == recipe.default_split)
    selected, excluded = select_clips(clips, config.select)
    count = len(clips)
    del clips
    checks = PlanChecks(recipe.labels)
    with ExitStack() as stack:
        if files:
            lookup: FileLookup = ManifestFiles(folder, files)
            lists: tuple[SourceFile, ...] = ()
        else:
            cache = None if rehash else stack.enter_context(ChecksumCache(folder))
            arguments = (folder, facts, cache, config.quality.max_bytes)
            local = ListedFiles(url, *arguments) if url else LocalFiles(*arguments)
            lookup = TarFiles(tars, facts, cache) if tars else local
            named = recipe.call(recipe.lists, folder, split_by) if recipe.lists else ()
            lists = tuple(local.verify_list(path) for path in named)
        threads = max(workers, CONNECTIONS) if url else workers
        jobs, invalid = _assign(recipe, config, selected, lookup, checks, threads=threads, progress=progress)
    if not jobs:
        raise no_usable_clips(folder, count, invalid, config.select.part)
    checks.warn(config)
    for file in lists:
        if file.variant:
            log.warning("%s is a variant: %s.", file.path, file.variant)
    return PreparationPlan(
        recipe, config, folder, facts, jobs, tuple(excluded + invalid), lists, bool(files), url
    )


def _assign(
    recipe: Recipe,
    config: Config,
    selected: Sequence[Clip],
    lookup: FileLookup,
    checks: PlanChecks,
    *,
    threads: int,
    progress: Progress,
) -> tuple[tuple[tuple[str, PackedClips], ...], list[QuarantinedClip]]:
    """Validate the clips in the order of the shards; return the shards and the clips to quarantine."""
    total, done = len(selected), 0
    progress("validate", 0, total)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("validate", done, total)

    ordered = sort_for_shards(selected, config.select.seed)
    invalid: list[QuarantinedClip] = []

    def valid() -> Iterator[ValidClip]:
        for result in validate_clips(ordered, lookup, config.audio, threads=threads, advance=advance):
            if isinstance(result, ValidClip):
                checks.add(result)
                yield result
            else:
                invalid.append(result)

    return assign_shards(recipe.name, valid(), config.shards.samples_per_shard), invalid


def resolve_config(
    recipe: Recipe,
    config: Config | Overrides | None,
    preset: str | None,
    task_options: Mapping[str, str] | None,
) -> Config:
    """Return the settings of a preparation; `task_options` are added to those of `config`.

    Raises:
        UsageError: a name or a value is invalid.
    """
    options: Overrides = {"select": {"task_options": dict(task_options or {})}}
    if not isinstance(config, Config):
        return recipe.configure(preset, config or {}, options)
    if task_options:
        config = build_config(config.model_dump(), options)
    recipe.check_options(config.select.task_options)
    return config


def _list_clips(
    recipe: Recipe, root: Path | TarSource, files: Sequence[FileEntry], config: Config
) -> ClipList:
    split_by = recipe.check_split(config.select.split_by)
    if files:
        from avdata.pipeline.source_prefetch import clips_from_manifest  # noqa: PLC0415  # see `_sources`

        assert isinstance(root, Path)
        return ClipList(clips_from_manifest(recipe, root, files, split_by), root)
    clips = recipe.iterate_clips(root, split_by, config.select.task_options)
    return ClipList(clips, root.root if isinstance(root, TarSource) else root)


def _with_source_labels(
    recipe: Recipe, root: Path | TarSource, clips: Sequence[Clip], config: Config
) -> Recipe:
    """Return the recipe with the labels of the source, if the source defines them."""
    if recipe.source_labels is None:
        return recipe
    labels = recipe.call(recipe.source_labels, root, clips, config.select.task_options)
    check_labels(labels, f"labels of the source of {recipe.name}")
    return replace(recipe, labels=tuple(labels))


def _sources(
    recipe: Recipe,
    source: str | Path | None,
    config: Config,
    manifest: str | Path | None,
    checksums: bool,
    give_up_after: float | None,
    progress: Progress,
) -> tuple[Path, Manifest | None, tuple[FileEntry, ...], TarSource | None]:
    """Return the source folder, the manifest to verify it with, the files to download into it, and its tars.

    The tars are None unless the recipe reads tars of clips.
    """
    if source is not None or recipe.generated:
        tars = _open_tars(recipe, source, progress) if source is not None else None
        folder = (
            tars.root
            if tars
            else _generate(recipe)
            if source is None
            else _local_source(recipe, source, manifest)
        )
        return folder, _manifest(recipe, folder, manifest) if checksums else None, (), tars
    from avdata.pipeline.source_prefetch import streamable_files  # noqa: PLC0415  # the downloader loads only when needed
    from avdata.sources.download import DownloadProgress, download  # noqa: PLC0415
    from avdata.sources.zenodo import read_pins  # noqa: PLC0415

    def show(state: DownloadProgress) -> None:
        progress(state.phase, state.bytes_done, state.bytes or state.bytes_done)
        describe_stage(progress, state.phase, state.detail)

    facts = _facts(recipe, Path(manifest) if manifest is not None else recipe.name)
    files = streamable_files(recipe, facts) if checksums else ()
    keys = () if files else None
    limit = None if files else config.select.limit
    report = download(
        recipe, limit=limit, split_by=config.select.split_by, keys=keys, manifest=facts,
        give_up_after=give_up_after, progress=show,
    )  # fmt: skip
    facts = read_pins(facts, report.root)
    tars = _open_tars(recipe, report.root, progress)
    return report.root, facts if checksums else None, files, tars


def _open_tars(recipe: Recipe, source: str | Path, progress: Progress) -> TarSource | None:
    """Return the tars of a source; None if the recipe reads its files."""
    is_tars = recipe.source_kind == "tars" or (recipe.source_kind == "any" and holds_tars(source))
    return open_tars(source, progress) if is_tars else None


def _local_source(recipe: Recipe, source: str | Path, manifest: str | Path | None) -> Path:
    path = survey_source(str(source)) if is_url(source) else Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        from avdata.sources.source_dir import unpack_archive_file  # noqa: PLC0415  # only for archives

        facts = None if manifest is None else _facts(recipe, Path(manifest))
        return unpack_archive_file(recipe, path, manifest=facts)
    msg = f"Source {path} does not exist."
    raise SourceError(msg, hint="Use --source with the folder or archive of the dataset.")


def _generate(recipe: Recipe) -> Path:
    folder = cache_dir() / "generated" / f"{recipe.name}-{recipe.version}"
    if (folder / "manifest.json").is_file():
        return folder
    # Written to a temporary folder, because another run may generate it too; the first one is used.
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as draft:
            recipe.mock_writer()(Path(draft, "complete"), None, False, 0)
            if not (folder / "manifest.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(FileExistsError):
                    Path(draft, "complete").rename(folder)
    return folder


def _manifest(recipe: Recipe, folder: Path, manifest: str | Path | None) -> Manifest:
    own = folder / "manifest.json"
    return _facts(recipe, Path(manifest) if manifest is not None else own if own.is_file() else recipe.name)


def _facts(recipe: Recipe, which: str | Path) -> Manifest:
    facts = load_manifest(which)
    # A task shares the manifest of its recipe. With the manifest of another dataset, no file is verified.
    if not (recipe.name == facts.name or recipe.name.startswith(f"{facts.name}-")):
        msg = f"Manifest mismatch: {which} is of {facts.name}, not of {recipe.name}."
        raise UsageError(msg, hint="Use --manifest with the dataset's own manifest, or --no-checksums.")
    return facts


def estimate_seconds_per_clip(planned: PreparationPlan, clips: int = 3) -> float:
    """Return the seconds per clip on one core: the median of the first clips, also of invalid ones."""
    from avdata.features.extract import extract_features  # noqa: PLC0415

    times = []
    candidates = (candidate for _, job in planned.jobs for candidate in job)
    for candidate in islice(candidates, clips + 1):
        local = fetch_clip(candidate, planned.source_url)
        began = time.perf_counter()
        with (
            suppress(MediaError),
            TemporaryDirectory() as scratch,
            local_clip(local, Path(scratch, "clip"), planned.config.quality) as clip,
        ):
            extract_features(clip, planned.config)
        times.append(time.perf_counter() - began)
    # The first clip loads the libraries.
    return statistics.median(times[1:] or times)
