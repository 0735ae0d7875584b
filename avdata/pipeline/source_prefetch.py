"""Sources that arrive while their clips are prepared and, if wanted, go when their shard is in the journal.

A thread downloads the files in the order of the shards, while the engine holds each clip back until its files
are in place. Where sources are not kept, the files of as many shards as there are workers are on disk at a
time, so that a large dataset passes through a small disk.
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
from avdata.progress import Progress
from avdata.recipe import Clip, Recipe
from avdata.sources.download import DownloadProgress, download
from avdata.sources.download_plan import has_file_list, listed_files

_STOP_TIMEOUT_S = 2.0

_POLL_INTERVAL_S = 0.05


def streamable_files(recipe: Recipe, manifest: Manifest) -> tuple[FileEntry, ...]:
    """The files of a dataset that can be prepared while it arrives, by sha256; none when it cannot.

    It can when all its media come as single files whose sha256 and size are known beforehand.
    """
    sources = [source for source in manifest.sources if has_file_list(source)]
    stood_in = any(source.unpack or source.instead_of for source in manifest.sources)
    if recipe.clips_from_paths is None or stood_in or not sources:
        return ()
    files = [facts for source in sources for facts in listed_files(source, manifest)]
    known = all(facts.bytes is not None and facts.checksum.startswith("sha256:") for facts in files)
    return tuple(files) if known else ()


def clips_from_manifest(recipe: Recipe, root: Path, files: Iterable[FileEntry], split_by: str) -> list[Clip]:
    """The clips of the files, with the paths that the files will have.

    Raises:
        SourceError: the lists that the split is made from are not in `root`.
    """
    assert recipe.clips_from_paths is not None
    return [
        replace(clip, video=root / clip.video, audio=root / clip.audio if clip.audio else None)
        for clip in recipe.clips_from_paths(root, [facts.path for facts in files], split_by)
    ]


class _Cancelled(Exception):
    """Ends the download inside its own callbacks."""


class SourcePrefetcher:
    """The files of shard jobs on their way; see `prefetch_sources`."""

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
        """Whether the clip's files are all in place.

        Raises:
            AvdataError: what ended the download.
        """
        if self._error is not None:
            raise self._error
        return key in self._ready

    def release(self, job: ShardJob) -> None:
        """Remove the files of a job whose shard is in the journal, unless all are kept; others may come."""
        if self.window is None:
            return
        remove_source_files(job)
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()

    def mark_arrived(self, path: Path) -> None:
        """A file is in place."""
        self.check_cancelled()
        for key in self._keys.pop(path, ()):
            self._missing[key] -= 1
            if not self._missing[key]:
                self._ready.add(key)

    def check_cancelled(self) -> None:
        """End the download's thread here when the run was stopped."""
        if self._stop:
            raise _Cancelled

    def wait_for_room(self) -> None:
        """Wait until another shard's files may come."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop or self._unfinished < (self.window or 1))
            self._unfinished += 1
        self.check_cancelled()

    def fail(self, error: BaseException) -> None:
        """Raise this in the run's own thread."""
        self._error = error

    def stop(self) -> None:
        """End the download's thread at its next callback."""
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
    progress: Progress,
) -> Iterator[SourcePrefetcher]:
    """Download what the jobs need, in a thread, for as long as the block runs.

    Args:
        recipe: of the dataset.
        manifest: where its files are had from.
        root: the folder they go into.
        jobs: in the order in which they will be run.
        split_by: the way of splitting.
        window: shards whose files may be on disk at a time, each removed when it is done; None keeps all.
        progress: called with `fetching` (or `proving`) and files, from the thread.
    """
    arrivals = SourcePrefetcher(jobs, window)
    groups = [jobs] if window is None else [[job] for job in jobs]
    total = sum(len(_paths(group)) for group in groups)

    def bring(group: Sequence[ShardJob], before: int) -> None:
        def show(moment: DownloadProgress) -> None:
            arrivals.check_cancelled()
            progress(moment.phase, max(before, before + count - moment.files) + moment.files_done, total)

        keys = [candidate.clip.key for job in group for candidate in job.clips]
        count = len(_paths(group))
        download(
            recipe,
            output=root,
            split_by=split_by,
            keys=keys,
            manifest=manifest,
            progress=show,
            arrived=arrivals.mark_arrived,
        )
        for path in _paths(group):
            arrivals.mark_arrived(path)

    def work() -> None:
        done = 0
        try:
            for group in groups:
                if window is not None:
                    arrivals.wait_for_room()
                bring(group, done)
                done += len(_paths(group))
        except _Cancelled:
            return
        except BaseException as error:  # raised again in the run's thread
            arrivals.fail(error)

    thread = threading.Thread(target=work, name="avdata-arriving", daemon=True)
    thread.start()
    try:
        yield arrivals
    finally:
        arrivals.stop()
        thread.join(_STOP_TIMEOUT_S)


def wait_for_all(arrivals: SourcePrefetcher, jobs: Sequence[ShardJob]) -> None:
    """Wait until every file is in place, for workers that cannot be held back clip by clip.

    Raises:
        AvdataError: what ended the download.
    """
    for job in jobs:
        for candidate in job.clips:
            while not arrivals.is_ready(candidate.clip.key):
                time.sleep(_POLL_INTERVAL_S)


def remove_source_files(job: ShardJob) -> None:
    """Remove the files that a finished shard was made from; those that are not there are no matter."""
    for candidate in job.clips:
        for path in (candidate.clip.video, candidate.clip.audio):
            if path is not None:
                path.unlink(missing_ok=True)


def _files(candidate: ValidClip) -> tuple[Path, ...]:
    """The files a clip is decoded from."""
    clip = candidate.clip
    return (clip.video, clip.audio) if candidate.audio and clip.audio else (clip.video,)


def _paths(jobs: Sequence[ShardJob]) -> set[Path]:
    return {path for job in jobs for candidate in job.clips for path in _files(candidate)}
