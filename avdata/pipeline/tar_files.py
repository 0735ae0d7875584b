"""Source files that are members of tars: verify them in place, and copy them out one clip at a time.

Decoders open paths. A worker copies the members of a clip to a scratch folder and removes them after the
clip, so that tars of any size need no second copy on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.manifest import Manifest
from avdata.pipeline.validation import LocalFiles, SourceFile, ValidClip, changed_content
from avdata.recipe import Clip
from avdata.sources.checksums import ChecksumCache
from avdata.sources.object_storage import fetch_source_file
from avdata.sources.tar_index import copy_member, hash_member
from avdata.sources.tar_source import TarSource
from avdata.storage.atomic import write_errors


class _Archives(LocalFiles):
    """Tars of a source. One that the manifest lists is copied from object storage to be verified."""

    def __init__(self, tars: TarSource, manifest: Manifest | None, checksums: ChecksumCache | None) -> None:
        super().__init__(tars.root, manifest, checksums)
        self._url = tars.url

    def content(self, path: Path) -> Path:
        """Return the local file with the content of a tar."""
        return self._content(path, self.name(path))

    def _content(self, path: Path, name: str) -> Path:
        if self._url is None:
            return path
        stat = path.stat()
        return fetch_source_file(self._url, name, stat.st_size, modified=stat.st_mtime)


class TarFiles:
    """Members of tars as source files; see `validation.FileLookup`.

    Args:
        tars: tars of the source.
        manifest: checksums of the tars to verify; None skips the verification.
        checksums: cache of checksums; None reads every member.
    """

    def __init__(self, tars: TarSource, manifest: Manifest | None, checksums: ChecksumCache | None) -> None:
        self.tars = tars
        self.checksums = checksums
        self.archives = _Archives(tars, manifest, checksums)
        self._checked: dict[Path, MediaError | str | None] = {}
        self._lock = Lock()

    def has(self, path: Path) -> bool:
        """Return whether the member exists."""
        return path in self.tars.members

    def name(self, path: Path) -> str:
        """Return the path `TAR/KEY.EXTENSION` below the root."""
        return path.relative_to(self.tars.root).as_posix()

    def verify(self, path: Path) -> SourceFile:
        """Return path, checksum, size and place of the member.

        Raises:
            MediaError: the member is empty, a git-LFS pointer or not media, or its tar has another checksum
                than the manifest lists.
        """
        from avdata.media.formats import HEAD_BYTES, detect_format_of  # noqa: PLC0415  # as in `LocalFiles`

        member, name = self.tars.members[path], self.name(path)
        verified_by = self._check_tar(member.tar)
        if verified_by is not None and self.tars.url:  # the verification copied the tar
            member = replace(member, tar=self.archives.content(member.tar), url="", content=None)
        stat = self.tars.members[path].tar.stat()
        cached = self.checksums.get(name, file=self.tars.members[path].tar) if self.checksums else None
        if cached is not None:  # its format was checked, too
            return SourceFile(name, cached.removeprefix("sha256:"), member.size, member, verified_by)
        try:
            sha256 = hash_member(member, lambda head: detect_format_of(head[:HEAD_BYTES]))
        except MediaError as error:
            raise MediaError(error.reason, f"{name}: {error.detail}") from error
        if self.checksums:
            self.checksums.store(name, f"sha256:{sha256}", stat)
        return SourceFile(name, sha256, member.size, member, verified_by)

    def _check_tar(self, tar: Path) -> str | None:
        """Return the algorithm of the tar's checksum in the manifest, None if the manifest lacks the tar.

        Raises:
            MediaError: the manifest lists the tar with another checksum.
        """
        with self._lock:
            if tar not in self._checked:
                self._checked[tar] = self._compare(tar)
        checked = self._checked[tar]
        if isinstance(checked, MediaError):
            raise MediaError(checked.reason, checked.detail)
        return checked

    def _compare(self, tar: Path) -> MediaError | str | None:
        try:
            return self.archives.check_listed(tar)
        except MediaError as error:
            return error


@contextmanager
def local_clip(candidate: ValidClip, scratch: Path, quality: QualityConfig) -> Iterator[Clip]:
    """Yield the clip with its tar members as files of the folder `scratch`, which are removed at the end.

    The folder is created, and removed if it is empty. A clip of files on disk is yielded unchanged.

    Raises:
        MediaError: TOO_LARGE, or CHECKSUM for a member that is not the one of the plan.
        SourceError: a member cannot be read.
        DiskError: the scratch folder cannot be written.
    """
    clip = candidate.clip
    files = [file for file in (candidate.video, candidate.audio) if file is not None]
    if not any(file.member for file in files):
        yield clip
        return
    try:
        with write_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            for file in files:
                _copy(file, scratch / Path(file.path).name, quality)
        # A clip without its separate audio keeps the name of the missing file.
        audio = clip.audio and scratch / clip.audio.name
        video = clip.video and scratch / clip.video.name
        yield replace(clip, video=video, audio=audio)
    finally:
        with suppress(OSError):
            for file in files:
                (scratch / Path(file.path).name).unlink(missing_ok=True)
            scratch.rmdir()


def _copy(file: SourceFile, path: Path, quality: QualityConfig) -> None:
    if file.bytes > quality.max_bytes:
        raise MediaError(QuarantineReason.TOO_LARGE, f"{path.name}: {file.bytes:,} bytes")
    assert file.member is not None
    if (sha256 := copy_member(file.member, path)) != file.sha256:
        raise changed_content(file, sha256)
