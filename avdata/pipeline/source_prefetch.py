"""Download of source files in the background while clips are prepared.

A thread downloads the files in the order of the shards. A clip starts when its files are complete. Without
`keep_sources`, the files of a shard are removed when the shard is committed, and only the files of as many
shards as there are workers are on disk at a time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from avdata.manifest import FileEntry, Manifest
from avdata.pipeline.shard_job import ShardJob
from avdata.pipeline.validation import ValidClip
from avdata.progress import Progress, describe_stage
from avdata.recipe import Clip, Recipe
from avdata.sources.download import DownloadProgress, download
from avdata.sources.download_plan import has_file_list, listed_files
from avdata.sources.failures import IncompleteError

_STOP_TIMEOUT_S = 2.0

_POLL_INTERVAL_S = 0.05


def streamable_files(recipe: Recipe, manifest: Manifest) -> tuple[FileEntry, ...]:
    """Return the files of a dataset that can be prepared during the download, else an empty tuple.

    This requires that all media are single files with a known SHA-256 and size.
    """
    sources = [source for source in manifest.sources if has_file_list(source)]
    has_archives = any(source.unpack or source.instead_of for source in manifest.sources)
    if recipe.clips_from_paths is None or has_archives or not sources:
        return ()
    files = [entry for source in sources for entry in listed_files(source, manifest)]
    is_known = all(entry.bytes is not None and entry.checksum.startswith("sha256:") for entry in files)
    return tuple(files) if is_known else ()


def clips_from_manifest(recipe: Recipe, root: Path, files: Iterable[FileEntry], split_by: str) -> list[Clip]:
    """Return the clips of the files, with the paths that the download will create.

    Raises:
        SourceError: a list that the split needs is missing in `root`.
    """
    paths = [entry.path for entry in files]
    return [
        replace(clip, video=clip.video and root / clip.video, audio=clip.audio and root / clip.audio)
        for clip in recipe.list_clips_from_paths(root, paths, split_by)
    ]


class _Cancelled(Exception):
    """Raised in the callbacks of a download to end it."""


class SourcePrefetcher:
    """State of the download of shard jobs' files; see `prefetch_sources`."""

    def __init__(self, jobs: Sequence[ShardJob], window: int | None) -> None:
        self.window = window
        self._ready: set[str] = set()
        self._keys: dict[Path, list[str]] = {}
        for job in jobs:
            for candidate in job.clips:
                for path in _files(candidate):
                    self._keys.setdefault(path, []).append(candidate.clip.key)
        self._missing = Counter(key for keys in self._keys.values() for key in keys)
        self._unfinished = 0
        self._stop = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def is_ready(self, key: str) -> bool:
        """Return whether all files of the clip are complete.

        Raises:
            AvdataError: the download failed.
        """
        if self._error is not None:
            raise self._error
        return key in self._ready

    def release(self, job: ShardJob) -> None:
        """Remove the files of a committed job to make room in the window; without a window, do nothing."""
        if self.window is None:
            return
        remove_source_files(job)
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()

    def mark_arrived(self, path: Path) -> None:
        """Record a complete file."""
        self.check_cancelled()
        for key in self._keys.pop(path, ()):
            self._missing[key] -= 1
            if not self._missing[key]:
                self._ready.add(key)

    def check_cancelled(self) -> None:
        """Raise in the download's thread if the run was stopped."""
        if self._stop:
            raise _Cancelled

    def wait_for_window(self) -> None:
        """Wait until the files of another shard may be downloaded."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop or self._unfinished < (self.window or 1))
            self._unfinished += 1
        self.check_cancelled()

    def fail(self, error: BaseException) -> None:
        """Record an error to raise in the run's thread."""
        self._error = error

    def stop(self) -> None:
        """Stop the download at its next callback."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()


@contextmanager
def prefetch_sources(
    recipe: Recipe,
    manifest: Manifest,
    root: Path,
    jobs: Sequence[ShardJob],
    *,
    split_by: str,
    window: int | None,
    allow_missing: bool = False,
    give_up_after: float | None = None,
    progress: Progress,
) -> Iterator[SourcePrefetcher]:
    """Download the files of the jobs in a thread until the block ends.

    Args:
        recipe: recipe of the dataset.
        manifest: manifest with the files and their URLs.
        root: folder of the download.
        jobs: jobs in the order in which they run.
        split_by: split scheme.
        window: number of shards whose files may be on disk at a time; None keeps all files.
        allow_missing: continue without files that cannot be downloaded.
        give_up_after: see `avdata.sources.download.download`.
        progress: called from the thread with the phase of the download and numbers of bytes.
    """
    prefetcher = SourcePrefetcher(jobs, window)
    groups = [jobs] if window is None else [[job] for job in jobs]
    total = sum(_bytes(group) for group in groups)

    def fetch(group: Sequence[ShardJob], before: int) -> None:
        def show(state: DownloadProgress) -> None:
            prefetcher.check_cancelled()
            present = max(0, count - (state.bytes or 0))
            progress(state.phase, before + present + state.bytes_done, total)
            describe_stage(progress, state.phase, state.detail)

        keys = [candidate.clip.key for job in group for candidate in job.clips]
        count = _bytes(group)
        download(
            recipe,
            output=root,
            split_by=split_by,
            keys=keys,
            manifest=manifest,
            allow_missing=allow_missing,
            give_up_after=give_up_after,
            progress=show,
            arrived=prefetcher.mark_arrived,
        )
        for path in _paths(group):
            prefetcher.mark_arrived(path)

    def work() -> None:
        done = 0
        try:
            for group in groups:
                if window is not None:
                    prefetcher.wait_for_window()
                fetch(group, done)
                done += _bytes(group)
        except _Cancelled:
            return
        except IncompleteError as error:
            error.hint = f"{error.hint}\nUse --allow-missing to prepare the other clips."
            prefetcher.fail(error)
        except BaseException as error:  # raised in the run's thread
            prefetcher.fail(error)

    thread = threading.Thread(target=work, name="avdata-prefetch-sources", daemon=True)
    thread.start()
    try:
        yield prefetcher
    finally:
        prefetcher.stop()
        thread.join(_STOP_TIMEOUT_S)


def wait_for_all(prefetcher: SourcePrefetcher, jobs: Sequence[ShardJob]) -> None:
    """Wait until all files are complete, for engines whose items cannot wait.

    Raises:
        AvdataError: the download failed.
    """
    for job in jobs:
        for candidate in job.clips:
            while not prefetcher.is_ready(candidate.clip.key):
                time.sleep(_POLL_INTERVAL_S)


def remove_source_files(job: ShardJob) -> None:
    """Remove the source files of a finished shard. Missing files are ignored."""
    for candidate in job.clips:
        for path in (candidate.clip.video, candidate.clip.audio):
            if path is not None:
                path.unlink(missing_ok=True)


def _files(candidate: ValidClip) -> tuple[Path, ...]:
    """Return the files that a clip is decoded from."""
    clip = candidate.clip
    paths = (clip.video, clip.audio if candidate.audio else None)
    return tuple(path for path in paths if path is not None)


def _bytes(jobs: Sequence[ShardJob]) -> int:
    """Return the size of the jobs' files, each counted once."""
    sizes = {
        file.path: file.bytes
        for job in jobs
        for candidate in job.clips
        for file in (candidate.video, candidate.audio)
        if file is not None
    }
    return sum(sizes.values())


def _paths(jobs: Sequence[ShardJob]) -> set[Path]:
    return {path for job in jobs for candidate in job.clips for path in _files(candidate)}
