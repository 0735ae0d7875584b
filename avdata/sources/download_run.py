"""Run a download: carry out plans, verify, fetch and unpack, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from avdata.errors import SourceError
from avdata.manifest import Manifest, Source
from avdata.recipe import Recipe
from avdata.sources.checksums import ChecksumCache, verify_files
from avdata.sources.download_plan import ClipChoice, DownloadPlan, listed_files, plan_download
from avdata.sources.fetcher import AttemptLog, FailedFile, FetchedFile
from avdata.sources.source_dir import STATE_DIR, archive_path, extract_source, free_bytes, fsync_dirs
from avdata.sources.transfer import transfer
from avdata.sources.types import FileRequest
from avdata.storage.atomic import DiskError

logger = logging.getLogger(__name__)

_RESERVED_BYTES = 64 << 20

_DISK_CHECK_INTERVAL_S = 1.0

Phase = Literal["proving", "fetching", "unpacking"]


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is.

    Attributes:
        phase: `proving` files found on disk, `fetching`, or `unpacking` an archive.
        files_done: files of this phase that are done.
        files: files of this phase; 0 when not known.
        bytes_done: bytes of this phase that are done, files under way included.
        bytes: bytes of this phase; None when not known.
    """

    phase: Phase
    files_done: int
    files: int
    bytes_done: int
    bytes: int | None


class Progress(Protocol):
    """Something that is shown how far a download is, about ten times a second, in the caller's thread."""

    def __call__(self, moment: DownloadProgress, /) -> None:
        """Show the moment."""


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """What a download did.

    Attributes:
        name: of the dataset.
        root: the folder with the files.
        fetched: files that were downloaded.
        received: bytes that came over the network.
        present: files that were there already and proven.
        unpacked: files that came out of archives.
        failed_attempts: attempts that failed; each has a line in `log`.
        seconds: it took.
        checksums: of each source that is one file or archive, by the source's name.
        log: the JSON lines of failed attempts, whether or not there are any.
    """

    name: str
    root: Path
    fetched: int
    received: int
    present: int
    unpacked: int
    failed_attempts: int
    seconds: float
    checksums: Mapping[str, str]
    log: Path

    def __repr__(self) -> str:
        return (
            f"DownloadReport({self.name}: {self.fetched:,} files fetched, {self.present:,} present,"
            f" {self.received:,} bytes received, root={str(self.root)!r})"
        )


class IncompleteError(SourceError):
    """Some of the files could not be had; the others are in place.

    Attributes:
        sources: the names of the sources they belong to.
    """

    def __init__(self, message: str, *, hint: str, sources: Collection[str]) -> None:
        super().__init__(message, hint=hint)
        self.sources = frozenset(sources)


class DownloadRun:
    """One download under way: what was learned so far."""

    plan: DownloadPlan
    log: AttemptLog

    def __init__(
        self,
        manifest: Manifest,
        progress: Progress,
        arrived: Callable[[Path], None],
        *,
        connections: int | None,
        bandwidth: float | None,
    ) -> None:
        self.manifest = manifest
        self.progress = progress
        self.arrived = arrived
        self.connections = connections
        self.bandwidth = bandwidth
        self.started = time.monotonic()
        self.present = self.received = self.fetched = self.failed = self.unpacked = 0
        self.checksums: dict[str, str] = {}
        self.disk_checked = 0.0

    def complete(self, recipe: Recipe, root: Path, choice: ClipChoice, *, rehash: bool) -> DownloadReport:
        """Carry out plans until all that was chosen is there; the report is of all of them."""
        lost: set[str] = set()
        while True:
            plan = plan_download(recipe, self.manifest, root, choice, lost=lost, rehash=rehash)
            try:
                self._carry_out(plan)
            except IncompleteError as error:
                lost |= _replaceable(error, self.manifest, lost)
            else:
                if not plan.partial:
                    return self._report()
                rehash = False

    def _carry_out(self, plan: DownloadPlan) -> None:
        """Verify, fetch and unpack what a plan lists."""
        self.plan, self.present = plan, plan.present
        self.log = AttemptLog(plan.root / STATE_DIR / "attempts.jsonl")
        files = self._verify()
        self._check_space(files)
        with ChecksumCache(plan.root) as checksums:
            missed = self._fetch(files, checksums)
            if missed:
                raise _incomplete(plan, missed, len(files), self.log)
            for source in plan.unpacked:
                self._unpack(source, checksums)
        fsync_dirs(plan.root, (request.path for request in files))

    def _report(self) -> DownloadReport:
        return DownloadReport(
            name=self.plan.name,
            root=self.plan.root,
            fetched=self.fetched,
            received=self.received,
            present=self.present,
            unpacked=self.unpacked,
            failed_attempts=self.failed,
            seconds=time.monotonic() - self.started,
            checksums=self.checksums,
            log=self.log.path,
        )

    def _verify(self) -> tuple[FileRequest, ...]:
        """Read what was found on disk and not proven yet; what is still to be fetched."""
        unproven = self.plan.unverified
        if not unproven:
            return self.plan.files
        total = sum(facts.bytes or 0 for facts in unproven)
        proven = verify_files(
            self.plan.root,
            unproven,
            rehash=True,
            progress=lambda files, done: self.progress(
                DownloadProgress("proving", files, len(unproven), done, total)
            ),
        )
        for path in proven.wrong:
            logger.warning("%s is not what the manifest says, and is fetched again", self.plan.root / path)
        good = set(proven.good)
        self.present += len(good)
        for request in self.plan.files:
            if request.path in good:
                self.arrived(self.plan.root / request.path)
        return tuple(request for request in self.plan.files if request.path not in good)

    def _check_space(self, files: tuple[FileRequest, ...]) -> None:
        needed = sum(request.bytes or 0 for request in files)
        parts = [self.plan.root / f"{request.path}.part" for request in files]
        needed -= sum(part.stat().st_size for part in parts if part.is_file())
        # An archive and what comes out of it lie side by side for a while.
        needed += sum(source.bytes or 0 for source in self.plan.unpacked)
        free = free_bytes(self.plan.root)
        if files and needed + _RESERVED_BYTES > free:
            msg = f"{self.plan.name} needs {needed:,} bytes, and {self.plan.root} has {free:,} free"
            hint = (
                "make room, or set AVDATA_CACHE (or --into) to a larger disk;"
                " `avdata prepare --keep-sources no` needs only a part of it at a time"
            )
            raise DiskError(msg, hint=hint)

    def _fetch(self, files: tuple[FileRequest, ...], checksums: ChecksumCache) -> list[FailedFile]:
        if not files:
            return []
        total = sum(request.bytes or 0 for request in files) if not self.plan.unknown else None
        missed: list[FailedFile] = []
        fetched, received = self.fetched, self.received

        def tick(on_disk: int, over_network: int) -> None:
            self.received = received + over_network
            self._check_disk()
            self.progress(DownloadProgress("fetching", self.fetched - fetched, len(files), on_disk, total))

        outcomes = transfer(
            self.plan.root,
            files,
            self.log,
            connections=self.connections,
            bandwidth=self.bandwidth,
            tick=tick,
        )
        try:
            for outcome in outcomes:
                if isinstance(outcome, FailedFile):
                    missed.append(outcome)
                else:
                    self._record(outcome, checksums)
        finally:
            # Ctrl-C may reach this frame: left to the collector, the generator's threads would go on.
            outcomes.close()
            self.log.close()
            self.failed += self.log.count
        return missed

    def _record(self, outcome: FetchedFile, checksums: ChecksumCache) -> None:
        request = outcome.request
        checksums.store(request.path, outcome.checksum, outcome.stat)
        self.fetched += 1
        if not self._listed(request):
            self.checksums[request.source] = outcome.checksum
        if not request.path.startswith(f"{STATE_DIR}/"):
            self.arrived(self.plan.root / request.path)

    def _listed(self, request: FileRequest) -> bool:
        return any(source.name == request.source and source.table for source in self.manifest.sources)

    def _check_disk(self) -> None:
        """Stop before the disk is so full that other programs suffer."""
        now = time.monotonic()
        if now - self.disk_checked < _DISK_CHECK_INTERVAL_S:
            return
        self.disk_checked = now
        free = free_bytes(self.plan.root)
        if free < _RESERVED_BYTES // 2:
            msg = f"the disk of {self.plan.root} is nearly full: {free:,} bytes are free"
            raise DiskError(msg, hint="make room; the next run goes on from here")

    def _unpack(self, source: Source, checksums: ChecksumCache) -> None:
        root = self.plan.root
        archive = root / archive_path(source)
        table = listed_files(source, self.manifest) if source.table else ()
        members = extract_source(
            root,
            source,
            archive,
            table=table,
            checksums=checksums,
            progress=lambda files, done: self.progress(
                DownloadProgress("unpacking", files, len(table), done, None)
            ),
        )
        self.unpacked += len(members)
        archive.unlink()
        for member in members:
            self.arrived(root / member.path)


def _replaceable(error: IncompleteError, manifest: Manifest, lost: Collection[str]) -> frozenset[str]:
    """The sources that failed, when others stand in for each of them; raises the error when not."""
    replaceable = {source.instead_of for source in manifest.sources} - set(lost)
    if not error.sources or not error.sources <= replaceable:
        raise error
    logger.warning("%s; what stands in for it is fetched instead", error.message)
    return error.sources


def _incomplete(plan: DownloadPlan, missed: list[FailedFile], count: int, log: AttemptLog) -> IncompleteError:
    first = missed[0]
    files = "file" if count == 1 else "files"
    msg = (
        f"{len(missed):,} of {count:,} {files} of {plan.name} could not be downloaded;"
        f" {first.request.path}: {first.reason}"
    )
    hint = next((one.hint for one in missed if one.hint), None)
    rest = f"the next run fetches only what is missing; every failed attempt is in {log.path}"
    sources = {one.request.source for one in missed}
    return IncompleteError(msg, hint=f"{hint}; {rest}" if hint else rest, sources=sources)
