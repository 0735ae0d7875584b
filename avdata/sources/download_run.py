"""Execution of a download plan: verify, fetch, extract, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avdata.manifest import Manifest, Source
from avdata.recipe import Recipe
from avdata.sources.attempt_log import AttemptLog
from avdata.sources.checksums import ChecksumCache, verify_files
from avdata.sources.download_plan import ClipChoice, DownloadPlan, has_file_list, listed_files, plan_download
from avdata.sources.failures import IncompleteError, incomplete_error, write_failed
from avdata.sources.fetcher import FailedFile, FetchedFile
from avdata.sources.source_dir import STATE_DIR, archive_path, extract_source, fsync_dirs
from avdata.sources.transfer import TransferState, transfer
from avdata.sources.types import FileRequest
from avdata.storage.atomic import DiskError, free_bytes
from avdata.storage.paths import check_no_symlinks

logger = logging.getLogger(__name__)

_RESERVED_BYTES = 64 << 20  # kept free on the disk for other programs

_DISK_CHECK_INTERVAL_S = 1.0

Phase = Literal["verifying", "fetching", "extracting"]


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Progress of a download.

    Attributes:
        phase: `verifying` files found on disk, `fetching`, or `extracting` an archive.
        files_done: number of files completed in this phase.
        files: number of files in this phase; 0 if unknown.
        bytes_done: bytes completed in this phase, partial files included.
        bytes: total bytes of this phase; None if unknown.
        host: host that sent the newest file.
        waiting: number of files that wait for the limit of a host or for its recovery.
    """

    phase: Phase
    files_done: int
    files: int
    bytes_done: int
    bytes: int | None
    host: str = ""
    waiting: int = 0

    @property
    def detail(self) -> str:
        """Counts of files, the host and the waiting files in words; empty outside `fetching`."""
        if self.phase != "fetching":
            return ""
        words = f"{self.files_done:,}/{self.files:,} files"
        words += f" from {self.host}" if self.host else ""
        return words + (f", {self.waiting} waiting" if self.waiting else "")


DownloadCallback = Callable[[DownloadProgress], None]
"""Callback with the progress of a download, about ten times a second, in the caller's thread."""


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """Result of a download.

    Attributes:
        name: name of the dataset.
        root: folder of the files.
        fetched: number of files downloaded.
        received: bytes received over the network.
        present: number of files that were already on disk and verified.
        unpacked: number of files extracted from archives.
        failed_attempts: number of failed attempts; each has a line in `log`.
        seconds: elapsed time.
        failed: reason of each file that could not be downloaded, by path; empty without `allow_missing`.
        checksums: checksum of each source that is a single file or an archive, by source name.
        log: path of the JSON lines of failed attempts; the file exists only if an attempt failed.
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
    failed: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"DownloadReport({self.name}: {self.fetched:,} files fetched, {self.present:,} present,"
            f" {self.received:,} bytes received, root={str(self.root)!r})"
        )


class DownloadRun:
    """State of one download and the counts of its report."""

    plan: DownloadPlan
    log: AttemptLog

    def __init__(
        self,
        manifest: Manifest,
        progress: DownloadCallback,
        arrived: Callable[[Path], None],
        *,
        connections: int | None,
        bandwidth: float | None,
        give_up_after: float | None = None,
        allow_missing: bool = False,
        command: str = "",
    ) -> None:
        self.manifest = manifest
        self.progress = progress
        self.arrived = arrived
        self.connections = connections
        self.bandwidth = bandwidth
        self.give_up_after = give_up_after
        self.allow_missing = allow_missing
        self.command = command
        self.missing: dict[str, str] = {}
        self.started = time.monotonic()
        self.present = self.received = self.fetched = self.failed = self.unpacked = 0
        self.checksums: dict[str, str] = {}
        self.disk_checked = 0.0

    def complete(self, recipe: Recipe, root: Path, choice: ClipChoice, *, rehash: bool) -> DownloadReport:
        """Execute plans until every chosen file is on disk.

        A plan is partial if the choice of clips depends on lists that are not downloaded yet. If a source
        fails and the manifest names substitutes, the next plan downloads those.
        """
        lost: set[str] = set()
        while True:
            plan = plan_download(recipe, self.manifest, root, choice, lost=lost, rehash=rehash)
            try:
                self._execute(plan)
            except IncompleteError as error:
                lost |= _replaceable(error, self.manifest, lost)
            else:
                if not plan.partial:
                    return self._report()
                rehash = False

    def _execute(self, plan: DownloadPlan) -> None:
        """Verify, fetch and extract the files of a plan."""
        self.plan, self.present = plan, plan.present
        _check_links(plan)
        self.log = AttemptLog(plan.root / STATE_DIR / "attempts.jsonl")
        files = self._verify()
        self._check_space(files)
        with ChecksumCache(plan.root) as checksums:
            failures = self._fetch(files, checksums)
            if failures:
                self._report_failures(failures, len(files))
            elif not plan.partial:
                write_failed(plan.root, {})
            for source in plan.unpacked:
                self._unpack(source, checksums)
        fsync_dirs(plan.root, (request.path for request in files if request.path not in self.missing))

    def _report_failures(self, failures: list[FailedFile], count: int) -> None:
        """Store the list of failed files; raise unless the dataset can do without them."""
        error = incomplete_error(self.plan.name, failures, count, log=self.log.path, command=self.command)
        write_failed(self.plan.root, error.files)
        lists = {source.name for source in self.manifest.sources if has_file_list(source)}
        if not (self.allow_missing and error.sources <= lists):
            raise error
        logger.warning("%s %s", error.message, error.hint)
        self.missing |= error.files

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
            failed=self.missing,
        )

    def _verify(self) -> tuple[FileRequest, ...]:
        """Verify files on disk whose checksum is not cached; return the files to fetch."""
        unverified = self.plan.unverified
        if not unverified:
            return self.plan.files
        total = sum(facts.bytes or 0 for facts in unverified)
        result = verify_files(
            self.plan.root,
            unverified,
            rehash=True,
            progress=lambda files, done: self.progress(
                DownloadProgress("verifying", files, len(unverified), done, total)
            ),
        )
        for path in result.wrong:
            logger.warning("Checksum mismatch in %s: downloading it again", self.plan.root / path)
        verified = set(result.good)
        self.present += len(verified)
        for request in self.plan.files:
            if request.path in verified:
                self.arrived(self.plan.root / request.path)
        return tuple(request for request in self.plan.files if request.path not in verified)

    def _check_space(self, files: tuple[FileRequest, ...]) -> None:
        needed = sum(request.bytes or 0 for request in files)
        parts = [self.plan.root / f"{request.path}.part" for request in files]
        needed -= sum(part.stat().st_size for part in parts if part.is_file())
        # An archive is removed only after its members are extracted.
        needed += sum(source.bytes or 0 for source in self.plan.unpacked)
        free = free_bytes(self.plan.root)
        if files and needed + _RESERVED_BYTES > free:
            msg = (
                f"Not enough disk space for {self.plan.name} in {self.plan.root}:"
                f" {needed:,} bytes needed, {free:,} free."
            )
            hint = (
                "Use --output or AVDATA_CACHE to choose a larger disk,"
                " or `avdata prepare --no-keep-sources` to keep only a part of the files at a time."
            )
            raise DiskError(msg, hint=hint)

    def _fetch(self, files: tuple[FileRequest, ...], checksums: ChecksumCache) -> list[FailedFile]:
        if not files:
            return []
        total = sum(request.bytes or 0 for request in files) if not self.plan.unknown else None
        failures: list[FailedFile] = []
        fetched, received = self.fetched, self.received

        def tick(state: TransferState) -> None:
            self.received = received + state.received
            self._check_disk()
            done = self.fetched - fetched
            self.progress(
                DownloadProgress(
                    "fetching", done, len(files), state.on_disk, total, state.host, state.waiting
                )
            )

        outcomes = transfer(
            self.plan.root,
            files,
            self.log,
            connections=self.connections,
            bandwidth=self.bandwidth,
            give_up_after=self.give_up_after,
            tick=tick,
        )
        try:
            for outcome in outcomes:
                if isinstance(outcome, FailedFile):
                    failures.append(outcome)
                else:
                    self._record(outcome, checksums)
        finally:
            # After Ctrl-C here, the threads would run until the generator is garbage-collected.
            outcomes.close()
            self.log.close()
            self.failed += self.log.count
        return failures

    def _record(self, outcome: FetchedFile, checksums: ChecksumCache) -> None:
        request = outcome.request
        checksums.store(request.path, outcome.checksum, outcome.stat)
        self.fetched += 1
        if not self._has_table(request):
            self.checksums[request.source] = outcome.checksum
        if not request.path.startswith(f"{STATE_DIR}/"):
            self.arrived(self.plan.root / request.path)

    def _has_table(self, request: FileRequest) -> bool:
        return any(source.name == request.source and source.table for source in self.manifest.sources)

    def _check_disk(self) -> None:
        """Stop before the disk is so full that other programs fail."""
        now = time.monotonic()
        if now - self.disk_checked < _DISK_CHECK_INTERVAL_S:
            return
        self.disk_checked = now
        free = free_bytes(self.plan.root)
        if free < _RESERVED_BYTES // 2:
            msg = f"Disk nearly full: {self.plan.root} ({free:,} bytes free)."
            raise DiskError(msg, hint="Free some space and repeat the command. Partial files are kept.")

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
                DownloadProgress("extracting", files, len(table), done, None)
            ),
        )
        self.unpacked += len(members)
        archive.unlink()
        for member in members:
            self.arrived(root / member.path)


def _check_links(plan: DownloadPlan) -> None:
    """Refuse symbolic links among the folders and state files; partial files are opened without following."""
    state = (path.relative_to(plan.root).as_posix() for path in (plan.root / STATE_DIR).rglob("*"))
    folders = {request.path.rpartition("/")[0] for request in plan.files}
    into = (source.into for source in plan.unpacked)
    check_no_symlinks(plan.root, (name for name in (STATE_DIR, *state, *folders, *into) if name))


def _replaceable(error: IncompleteError, manifest: Manifest, lost: Collection[str]) -> frozenset[str]:
    """Return the failed sources if each has a substitute; raise the error otherwise."""
    replaceable = {source.instead_of for source in manifest.sources} - set(lost)
    if not error.sources or not error.sources <= replaceable:
        raise error
    logger.warning("%s Downloading its substitute instead.", error.message)
    return error.sources
