"""What a preparation will do: survey the source, and plan which shard holds which clips.

The plan is made before anything is decoded, from the files on disk or, for a dataset that comes in single
files, from the manifest that they will be downloaded by: it is the same plan.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from avdata.config.overrides import Overrides
from avdata.config.schema import Config
from avdata.errors import MediaError, QuarantineReason, SourceError, UsageError
from avdata.features.audio import feature_bins
from avdata.features.face_crop import require_detector
from avdata.manifest import FileEntry, Manifest, load_manifest
from avdata.pipeline.validation import FileLookup, LocalFiles, ManifestFiles, ValidClip, validate_clips
from avdata.progress import Progress
from avdata.recipe import Clip, Recipe, load_recipe, recipe_errors
from avdata.selection import QuarantinedClip, check_clips, hash_order, select_clips
from avdata.shards.format import shard_name
from avdata.sources.checksums import ChecksumCache
from avdata.sources.object_storage import mirror_source
from avdata.storage.atomic import write_errors
from avdata.storage.paths import cache_dir
from avdata.storage.remote import is_url

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PreparationPlan:
    """What a preparation will do, before anything is decoded."""

    recipe: Recipe
    config: Config
    source: Path
    manifest: Manifest | None
    jobs: tuple[tuple[str, tuple[ValidClip, ...]], ...]
    quarantined: tuple[QuarantinedClip, ...]
    pending_files: bool = False
    """Whether the files are still to be downloaded, while clips are prepared."""

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
        """An estimate of the shards' size: arrays as stored, the rest as measured on CREMA-D.

        That is 1.2 bits a pixel and channel for JPEG, 2.8 for PNG, and 6.4 a sample of sound for FLAC.
        """
        audio, video = self.config.audio, self.config.video
        pixels = video.num_frames * video.size**2 * (3 if video.color == "rgb" else 1)
        frames = pixels * {"npy": 1.0, "png": 0.35, "jpeg": 0.15}[video.storage]
        seconds = (
            float(self.config.align.window_seconds(video.num_frames)) if self.config.align.seconds else 3
        )
        sound = seconds * audio.sample_rate * 0.8 if audio.flac else 0
        mel = video.num_frames * feature_bins(audio) * self.config.mel_columns * 2
        return int(len(self.clips) * (mel + frames + sound + 5_000))


def plan_preparation(
    recipe: str | Path | Recipe,
    *,
    source: str | Path | None = None,
    config: Config | Overrides | None = None,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checksums: bool = True,
    rehash: bool = False,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> PreparationPlan:
    """Survey a source and plan its shards; writes no shard. The arguments are those of `prepare`.

    Without `source`, a dataset of single files is planned from its manifest, and only the lists that its
    split is made from are downloaded; one that comes in archives is downloaded.
    """
    recipe = load_recipe(recipe)
    settled = config if isinstance(config, Config) else recipe.configure(preset, config or {})
    if settled.video.resize_mode == "face":
        require_detector()
    folder, facts, files = _sources(recipe, source, settled, manifest, checksums, progress)
    split_by = recipe.check_split(settled.select.split_by)
    with ExitStack() as stack:
        if files:
            from avdata.pipeline.source_prefetch import clips_from_manifest  # noqa: PLC0415  # see `_sources`

            clips = clips_from_manifest(recipe, folder, files, split_by)
            found: FileLookup = ManifestFiles(folder, files)
        else:
            with recipe_errors(getattr(recipe.clips, "__code__", plan_preparation.__code__).co_filename):
                clips = list(recipe.clips(folder, split_by))
            found = LocalFiles(folder, facts, None if rehash else stack.enter_context(ChecksumCache(folder)))
        check_clips(clips, recipe.labels, SPLITS)
        if facts is not None:
            _warn_about_counts(facts, clips, folder, usual=split_by == recipe.default_split)
        chosen, left_out = select_clips(clips, settled.select)
        done = 0
        progress("survey", 0, len(chosen))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("survey", done, len(chosen))

        good, bad = validate_clips(chosen, found, settled.audio, threads=max(workers, 1), advance=advance)
    if not good:
        raise _no_usable_clips(folder, clips, bad)
    _warn_about_leaks(good)
    jobs = _shards(recipe, good, settled)
    return PreparationPlan(
        recipe, settled, folder, facts, jobs, tuple(left_out + bad), pending_files=bool(files)
    )


def _sources(
    recipe: Recipe,
    source: str | Path | None,
    config: Config,
    manifest: str | Path | None,
    checksums: bool,
    progress: Progress,
) -> tuple[Path, Manifest | None, tuple[FileEntry, ...]]:
    """The source's folder, what it is proven against, and the files that will arrive there."""
    if source is not None or recipe.generated:
        folder = _generated(recipe) if source is None else _given(recipe, source)
        return folder, _manifest(recipe, folder, manifest) if checksums else None, ()
    from avdata.pipeline.source_prefetch import streamable_files  # noqa: PLC0415  # the downloader loads only when needed
    from avdata.sources.download import DownloadProgress, download  # noqa: PLC0415

    def show(moment: DownloadProgress) -> None:
        progress(moment.phase, moment.files_done, moment.files)

    facts = _facts(recipe, Path(manifest) if manifest is not None else recipe.name)
    files = streamable_files(recipe, facts) if checksums else ()
    keys = () if files else None
    limit = None if files else config.select.limit
    report = download(
        recipe, limit=limit, split_by=config.select.split_by, keys=keys, manifest=facts, progress=show
    )
    return report.root, facts if checksums else None, files


def _given(recipe: Recipe, given: str | Path) -> Path:
    source = mirror_source(str(given)) if is_url(given) else Path(given)
    if source.is_dir():
        return source
    if source.is_file():
        from avdata.sources.source_dir import unpack_archive_file  # noqa: PLC0415  # only for archives

        return unpack_archive_file(recipe, source)
    msg = f"the source {source} does not exist"
    raise SourceError(msg, hint="give the folder or the archive that holds the dataset with --source")


def _generated(recipe: Recipe) -> Path:
    folder = cache_dir() / "generated" / f"{recipe.name}-{recipe.version}"
    if (folder / "manifest.json").is_file():
        return folder
    # Made aside, as another run may be making it just now; whichever is ready first is taken.
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as draft:
            recipe.mock_writer()(Path(draft, "whole"), None, False, 0)
            if not (folder / "manifest.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(FileExistsError):
                    Path(draft, "whole").rename(folder)
    return folder


def _manifest(recipe: Recipe, folder: Path, manifest: str | Path | None) -> Manifest:
    own = folder / "manifest.json"
    return _facts(recipe, Path(manifest) if manifest is not None else own if own.is_file() else recipe.name)


def _facts(recipe: Recipe, which: str | Path) -> Manifest:
    facts = load_manifest(which)
    # A task shares its recipe's manifest. Against another dataset's, files would pass unproven.
    if not (recipe.name == facts.name or recipe.name.startswith(f"{facts.name}-")):
        msg = f"the manifest {which} is of {facts.name}, not of {recipe.name}"
        raise UsageError(msg, hint="give the dataset's own with --manifest, or --checksums off")
    return facts


def _no_usable_clips(folder: Path, clips: Sequence[Clip], bad: Sequence[QuarantinedClip]) -> SourceError:
    counted = Counter(one.reason for one in bad).most_common()
    why = ", ".join(f"{count} {reason}" for reason, count in counted) or "none are left by the selection"
    first = f"; the first: {bad[0].detail}" if bad else ""
    message = f"not one of the {len(clips)} clips in {folder} can be prepared ({why}{first})"
    hints = {
        QuarantineReason.LFS_POINTER: "the media were never fetched: run `git lfs pull` there",
        QuarantineReason.CHECKSUM: "fetch the files again, or give --checksums off if you changed "
        "them yourself",
        QuarantineReason.MISSING_AUDIO: "use the videos' own sound with --audio auto, or fetch the "
        "audio files",
        QuarantineReason.MISSING_VIDEO: "fetch the videos; sound alone makes no audio-visual sample",
    }
    hint = hints.get(counted[0][0], counted[0][0].description) if counted else "change --limit or --leaks"
    return SourceError(message, hint=hint)


def _warn_about_counts(manifest: Manifest, clips: Sequence[Clip], folder: Path, *, usual: bool) -> None:
    """Say where the clips are not as many as the manifest expects; a mock is smaller on purpose."""
    if manifest.mock:
        return
    usable = [clip for clip in clips if not clip.excluded]
    found = {"clips": len(clips), "usable": len(usable), "rows": len(usable)}
    if usual:
        found |= {split: sum(clip.split == split for clip in usable) for split in SPLITS}
    apart = [
        f"{found[name]:,} {name} of {count:,}"
        for name, count in manifest.expected.items()
        if name in found and found[name] != count
    ]
    if apart:
        log.warning("%s is not all of %s: it holds %s", folder, manifest.title, ", ".join(apart))


def _warn_about_leaks(candidates: Sequence[ValidClip]) -> None:
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
    recipe: Recipe, candidates: Sequence[ValidClip], config: Config
) -> tuple[tuple[str, tuple[ValidClip, ...]], ...]:
    jobs = []
    for split in SPLITS:
        held = [candidate for candidate in candidates if candidate.clip.split == split]
        held.sort(key=lambda candidate: hash_order(candidate.clip.key, config.select.seed))
        size = config.shards.samples_per_shard
        count = -(-len(held) // size)
        for number in range(count):
            name = shard_name(recipe.name, split, number, count)
            jobs.append((name, tuple(held[number * size : (number + 1) * size])))
    return tuple(jobs)


def estimate_seconds_per_clip(planned: PreparationPlan, clips: int = 3) -> float:
    """Seconds a clip takes on one core, by preparing the first few; bad ones count as they are."""
    from avdata.features.extract import extract_features  # noqa: PLC0415

    tried = planned.clips[: clips + 1]
    times = []
    for clip in tried:
        began = time.perf_counter()
        with suppress(MediaError):
            extract_features(clip, planned.config)
        times.append(time.perf_counter() - began)
    # The first one loads the libraries.
    return statistics.median(times[1:] or times)
