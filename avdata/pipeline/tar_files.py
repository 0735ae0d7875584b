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
from avdata.errors import MediaError, QuarantineReason, SourceError
from avdata.manifest import Manifest
from avdata.pipeline.validation import LocalFiles, SourceFile, ValidClip
from avdata.recipe import Clip
from avdata.sources.checksums import ChecksumCache
from avdata.sources.tar_index import copy_member, hash_member, read_chunks
from avdata.sources.tar_source import TarSource
from avdata.storage.atomic import write_errors


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
        self.archives = LocalFiles(tars.root, manifest, checksums)
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
        try:
            detect_format_of(next(read_chunks(member, HEAD_BYTES), b""))
        except MediaError as error:
            raise MediaError(error.reason, f"{name}: {error.detail}") from error
        cached = self.checksums.get(name, file=member.tar) if self.checksums else None
        if cached is not None:
            return SourceFile(name, cached.removeprefix("sha256:"), member.size, member, verified_by)
        stat = member.tar.stat()
        sha256 = hash_member(member)
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
        MediaError: TOO_LARGE.
        SourceError: a member cannot be read, or has changed since it was verified.
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
    if copy_member(file.member, path) != file.sha256:
        msg = f"Source file changed after its checksum was computed: {file.path} in {file.member.tar}."
        raise SourceError(msg, hint="Run the same command again with --rehash.")
