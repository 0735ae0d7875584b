"""Sources that arrive while their clips are prepared and, if wanted, go when their shard is in the journal.

A thread downloads the files in the order of the shards, while the engine holds each clip back until its files
are in place. Where sources are not kept, the files of as many shards as there are workers are on disk at a
time, so that a large dataset passes through a small disk.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from avdata.manifest import FileFacts, Manifest
from avdata.pipeline.shard_job import ShardJob
from avdata.pipeline.validation import Candidate
from avdata.recipe import Clip, Recipe
from avdata.sources.download import Moment, download
from avdata.sources.download_plan import files_of, lists_files

Progress = Callable[[str, int, int], None]

_ANSWER = 2.0

_LOOK = 0.05


def single_files(recipe: Recipe, manifest: Manifest) -> tuple[FileFacts, ...]:
    """The files of a dataset that can be prepared while it arrives, by sha256; none when it cannot.

    It can when all its media come as single files whose sha256 and size are known beforehand.
    """
    sources = [source for source in manifest.sources if lists_files(source)]
    stood_in = any(source.unpack or source.instead_of for source in manifest.sources)
    if recipe.listed is None or stood_in or not sources:
        return ()
    files = [facts for source in sources for facts in files_of(source, manifest)]
    known = all(facts.bytes is not None and facts.checksum.startswith("sha256:") for facts in files)
    return tuple(files) if known else ()


def listed_clips(recipe: Recipe, root: Path, files: Iterable[FileFacts], split_by: str) -> list[Clip]:
    """The clips of the files, with the paths that the files will have.

    Raises:
        SourceError: the lists that the split is made from are not in `root`.
    """
    assert recipe.listed is not None
    return [
        replace(clip, video=root / clip.video, audio=root / clip.audio if clip.audio else None)
        for clip in recipe.listed(root, [facts.path for facts in files], split_by)
    ]


class _Stopped(Exception):
    """Ends the download inside its own callbacks."""


class Arrivals:
    """The files of shard jobs on their way; see `arriving`."""

    def __init__(self, jobs: Sequence[ShardJob], window: int | None) -> None:
        self.window = window
        self._ready: set[str] = set()
        self._keys: dict[Path, list[str]] = {}
        for job in jobs:
            for candidate in job.candidates:
                for path in _files(candidate):
                    self._keys.setdefault(path, []).append(candidate.clip.key)
        self._missing = Counter(key for keys in self._keys.values() for key in keys)
        self._unfinished = 0
        self._stop = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def may_begin(self, key: str) -> bool:
        """Whether the clip's files are all in place.

        Raises:
            AvdataError: what ended the download.
        """
        if self._error is not None:
            raise self._error
        return key in self._ready

    def finished(self, job: ShardJob) -> None:
        """Remove the files of a job whose shard is in the journal, unless all are kept; others may come."""
        if self.window is None:
            return
        remove_sources(job)
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()

    def arrived(self, path: Path) -> None:
        """A file is in place."""
        self.go_on()
        for key in self._keys.pop(path, ()):
            self._missing[key] -= 1
            if not self._missing[key]:
                self._ready.add(key)

    def go_on(self) -> None:
        """End the download's thread here when the run was stopped."""
        if self._stop:
            raise _Stopped

    def make_room(self) -> None:
        """Wait until another shard's files may come."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop or self._unfinished < (self.window or 1))
            self._unfinished += 1
        self.go_on()

    def fail(self, error: BaseException) -> None:
        """Raise this in the run's own thread."""
        self._error = error

    def stop(self) -> None:
        """End the download's thread at its next callback."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()


@contextmanager
def arriving(
    recipe: Recipe,
    manifest: Manifest,
    root: Path,
    jobs: Sequence[ShardJob],
    *,
    split_by: str,
    window: int | None,
    progress: Progress,
) -> Iterator[Arrivals]:
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
    arrivals = Arrivals(jobs, window)
    groups = [jobs] if window is None else [[job] for job in jobs]
    total = sum(len(_paths(group)) for group in groups)

    def bring(group: Sequence[ShardJob], before: int) -> None:
        def show(moment: Moment) -> None:
            arrivals.go_on()
            progress(moment.phase, max(before, before + count - moment.files) + moment.files_done, total)

        keys = [candidate.clip.key for job in group for candidate in job.candidates]
        count = len(_paths(group))
        download(
            recipe,
            into=root,
            split_by=split_by,
            keys=keys,
            manifest=manifest,
            progress=show,
            arrived=arrivals.arrived,
        )
        for path in _paths(group):
            arrivals.arrived(path)

    def work() -> None:
        done = 0
        try:
            for group in groups:
                if window is not None:
                    arrivals.make_room()
                bring(group, done)
                done += len(_paths(group))
        except _Stopped:
            return
        except BaseException as error:  # raised again in the run's thread
            arrivals.fail(error)

    thread = threading.Thread(target=work, name="avdata-arriving", daemon=True)
    thread.start()
    try:
        yield arrivals
    finally:
        arrivals.stop()
        thread.join(_ANSWER)


def wait_for_all(arrivals: Arrivals, jobs: Sequence[ShardJob]) -> None:
    """Wait until every file is in place, for workers that cannot be held back clip by clip.

    Raises:
        AvdataError: what ended the download.
    """
    for job in jobs:
        for candidate in job.candidates:
            while not arrivals.may_begin(candidate.clip.key):
                time.sleep(_LOOK)


def remove_sources(job: ShardJob) -> None:
    """Remove the files that a finished shard was made from; those that are not there are no matter."""
    for candidate in job.candidates:
        for path in (candidate.clip.video, candidate.clip.audio):
            if path is not None:
                path.unlink(missing_ok=True)


def _files(candidate: Candidate) -> tuple[Path, ...]:
    """The files a clip is decoded from."""
    clip = candidate.clip
    return (clip.video, clip.audio) if candidate.audio and clip.audio else (clip.video,)


def _paths(jobs: Sequence[ShardJob]) -> set[Path]:
    return {path for job in jobs for candidate in job.candidates for path in _files(candidate)}
