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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from avdata.config.overrides import Overrides
from avdata.config.schema import Config, build_config
from avdata.errors import MediaError, SourceError, UsageError
from avdata.features.audio import feature_bins
from avdata.features.face_crop import require_detector
from avdata.manifest import FileEntry, Manifest, load_manifest
from avdata.media.decoders import DECODERS
from avdata.pipeline.plan_checks import (
    no_usable_clips,
    warn_about_container_audio,
    warn_about_counts,
    warn_about_labels,
    warn_about_leaks,
)
from avdata.pipeline.tar_files import TarFiles, local_clip
from avdata.pipeline.validation import (
    FileLookup,
    LocalFiles,
    ManifestFiles,
    SourceFile,
    ValidClip,
    validate_clips,
)
from avdata.progress import Progress
from avdata.recipe import Clip, Recipe, load_recipe
from avdata.selection import QuarantinedClip, check_clips, hash_order, select_clips
from avdata.shards.format import shard_name
from avdata.sources.checksums import ChecksumCache
from avdata.sources.object_storage import mirror_source
from avdata.sources.tar_source import TarSource, open_tars
from avdata.storage.atomic import write_errors
from avdata.storage.paths import cache_dir
from avdata.storage.remote import is_url

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PreparationPlan:
    """Plan of a preparation: clips by shard, and the clips in quarantine.

    Attributes:
        recipe: recipe of the dataset.
        config: settings.
        source: folder of the source files.
        manifest: checksums to verify; None skips the verification.
        jobs: path of each shard with its clips.
        quarantined: clips that cannot be prepared, with their reasons.
        lists: lists of clips, labels or splits that the recipe read, as far as it names them.
        pending_files: whether the source files are downloaded during the preparation.
    """

    recipe: Recipe
    config: Config
    source: Path
    manifest: Manifest | None
    jobs: tuple[tuple[str, tuple[ValidClip, ...]], ...]
    quarantined: tuple[QuarantinedClip, ...]
    lists: tuple[SourceFile, ...] = ()
    pending_files: bool = False

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
        return [candidate.clip for _, candidates in self.jobs for candidate in candidates]

    @property
    def files(self) -> list[SourceFile]:
        """Files that will be decoded, each once."""
        candidates = [candidate for _, candidates in self.jobs for candidate in candidates]
        files = [file for candidate in candidates for file in (candidate.video, candidate.audio) if file]
        return list({file.path: file for file in files}.values())

    @property
    def has_frames(self) -> bool:
        """Whether the samples have frames: False for a dataset of audio."""
        return any(clip.video is not None for clip in self.clips)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of clips by split, then by label in canonical order."""
        counts = Counter((clip.split, clip.label) for clip in self.clips)
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
        return int(len(self.clips) * (mel + frames + flac + 5_000))


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
    folder, facts, files, tars = _sources(recipe, source, config, manifest, checksums, progress)
    split_by = recipe.check_split(config.select.split_by)
    clips = _list_clips(recipe, tars or folder, files, config)
    recipe = _with_source_labels(recipe, tars or folder, clips, config)
    check_clips(clips, recipe.labels, SPLITS)
    if facts is not None:
        warn_about_counts(facts, clips, folder, is_default_split=split_by == recipe.default_split)
    selected, excluded = select_clips(clips, config.select)
    done = 0
    progress("validate", 0, len(selected))

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("validate", done, len(selected))

    with ExitStack() as stack:
        if files:
            lookup: FileLookup = ManifestFiles(folder, files)
            lists: tuple[SourceFile, ...] = ()
        else:
            cache = None if rehash else stack.enter_context(ChecksumCache(folder))
            local = LocalFiles(folder, facts, cache)
            lookup = TarFiles(tars, facts, cache) if tars else local
            named = recipe.lists(folder, split_by) if recipe.lists else ()
            lists = tuple(local.verify_list(path) for path in named)
        valid, invalid = validate_clips(
            selected, lookup, config.audio, threads=max(workers, 1), advance=advance
        )
    if not valid:
        raise no_usable_clips(folder, clips, invalid)
    warn_about_leaks(valid)
    warn_about_labels(valid, recipe.labels)
    warn_about_container_audio(valid, config.audio)
    for file in lists:
        if file.variant:
            log.warning("%s is a variant: %s.", file.path, file.variant)
    return PreparationPlan(
        recipe, config, folder, facts, _shards(recipe, valid, config), tuple(excluded + invalid), lists,
        pending_files=bool(files),
    )  # fmt: skip


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
) -> list[Clip]:
    split_by = recipe.check_split(config.select.split_by)
    if files:
        from avdata.pipeline.source_prefetch import clips_from_manifest  # noqa: PLC0415  # see `_sources`

        assert isinstance(root, Path)
        return clips_from_manifest(recipe, root, files, split_by)
    return recipe.list_clips(root, split_by, config.select.task_options)


def _with_source_labels(
    recipe: Recipe, root: Path | TarSource, clips: Sequence[Clip], config: Config
) -> Recipe:
    """Return the recipe with the labels of the source, if the source defines them."""
    if recipe.source_labels is None:
        return recipe
    return replace(recipe, labels=tuple(recipe.source_labels(root, clips, config.select.task_options)))


def _sources(
    recipe: Recipe,
    source: str | Path | None,
    config: Config,
    manifest: str | Path | None,
    checksums: bool,
    progress: Progress,
) -> tuple[Path, Manifest | None, tuple[FileEntry, ...], TarSource | None]:
    """Return the source folder, the manifest to verify it with, the files to download into it, and its tars.

    The tars are None unless the recipe reads tars of clips.
    """
    if source is not None or recipe.generated:
        tars = open_tars(source, progress) if source is not None and recipe.source_kind == "tars" else None
        folder = tars.root if tars else _generate(recipe) if source is None else _local_source(recipe, source)
        return folder, _manifest(recipe, folder, manifest) if checksums else None, (), tars
    from avdata.pipeline.source_prefetch import streamable_files  # noqa: PLC0415  # the downloader loads only when needed
    from avdata.sources.download import DownloadProgress, download  # noqa: PLC0415

    def show(state: DownloadProgress) -> None:
        progress(state.phase, state.files_done, state.files)

    facts = _facts(recipe, Path(manifest) if manifest is not None else recipe.name)
    files = streamable_files(recipe, facts) if checksums else ()
    keys = () if files else None
    limit = None if files else config.select.limit
    report = download(
        recipe, limit=limit, split_by=config.select.split_by, keys=keys, manifest=facts, progress=show
    )
    tars = open_tars(report.root, progress) if recipe.source_kind == "tars" else None
    return report.root, facts if checksums else None, files, tars


def _local_source(recipe: Recipe, source: str | Path) -> Path:
    path = mirror_source(str(source)) if is_url(source) else Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        from avdata.sources.source_dir import unpack_archive_file  # noqa: PLC0415  # only for archives

        return unpack_archive_file(recipe, path)
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


def _shards(
    recipe: Recipe, candidates: Sequence[ValidClip], config: Config
) -> tuple[tuple[str, tuple[ValidClip, ...]], ...]:
    jobs = []
    for split in SPLITS:
        clips = [candidate for candidate in candidates if candidate.clip.split == split]
        clips.sort(key=lambda candidate: hash_order(candidate.clip.key, config.select.seed))
        size = config.shards.samples_per_shard
        count = -(-len(clips) // size)
        for number in range(count):
            name = shard_name(recipe.name, split, number, count)
            jobs.append((name, tuple(clips[number * size : (number + 1) * size])))
    return tuple(jobs)


def estimate_seconds_per_clip(planned: PreparationPlan, clips: int = 3) -> float:
    """Return the seconds per clip on one core: the median of the first clips, also of invalid ones."""
    from avdata.features.extract import extract_features  # noqa: PLC0415

    times = []
    candidates = [candidate for _, job in planned.jobs for candidate in job]
    for candidate in candidates[: clips + 1]:
        began = time.perf_counter()
        with (
            suppress(MediaError),
            TemporaryDirectory() as scratch,
            local_clip(candidate, Path(scratch, "clip"), planned.config.quality) as clip,
        ):
            extract_features(clip, planned.config)
        times.append(time.perf_counter() - began)
    # The first clip loads the libraries.
    return statistics.median(times[1:] or times)
