"""Validation of clips: each file exists, has the checksum of the manifest, or else looks like media.

Nothing is decoded. Clips that fail go to quarantine before the shards are planned.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import basename, splitext
from typing import Protocol

from avdata.config.schema import AudioConfig
from avdata.errors import MediaError, QuarantineReason, SourceError
from avdata.manifest import FileEntry, Manifest
from avdata.recipe import Clip
from avdata.selection import QuarantinedClip
from avdata.sources.checksums import ChecksumCache
from avdata.sources.tar_index import TarMember
from avdata.storage.hashing import hash_file
from avdata.storage.threads import map_in_threads

Advance = Callable[[int], None]

_MAX_PART = 64  # clips that a thread validates in one task


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Source file.

    Attributes:
        path: path below the source.
        sha256: SHA-256 of the content.
        bytes: size.
        member: its place in a tar, if it is in one.
        verified_by: algorithm of the manifest's checksum that the file, or its tar, has; None if the manifest
            lists none.
        variant: what differs from the listed file, if this is another published copy of it.
    """

    path: str
    sha256: str
    bytes: int
    member: TarMember | None = None
    verified_by: str | None = None
    variant: str | None = None

    def __reduce__(self) -> tuple[type[SourceFile], tuple[object, ...]]:
        """Return what pickle needs; that of a dataclass takes three times as long."""
        return type(self), (self.path, self.sha256, self.bytes, self.member, self.verified_by, self.variant)


@dataclass(frozen=True, slots=True)
class ValidClip:
    """Clip whose files exist and agree with the manifest; `audio` is None if the video's own is used.

    `video` is None in a dataset of audio.
    """

    clip: Clip
    video: SourceFile | None
    audio: SourceFile | None

    def __reduce__(self) -> tuple[type[ValidClip], tuple[object, ...]]:
        """Return what pickle needs; that of a dataclass takes three times as long."""
        return type(self), (self.clip, self.video, self.audio)


def check_content(path: Path, file: SourceFile) -> None:
    """Compare a file that is about to be decoded with its checksum in the plan, which may be a cached one.

    Raises:
        MediaError: CHECKSUM: the content changed, also if size and modification time did not.
    """
    sha256 = hash_file(path)
    if sha256 != file.sha256:
        raise changed_content(file, sha256)


def changed_content(file: SourceFile, sha256: str) -> MediaError:
    """Return the error of a file whose content is not that of the plan."""
    detail = f"{file.path}: sha256:{sha256} when it was decoded, sha256:{file.sha256} in the plan"
    return MediaError(QuarantineReason.CHECKSUM, detail)


class FileLookup(Protocol):
    """Lookup of source files: on disk, or in the manifest of files that are downloaded later."""

    def has(self, path: Path) -> bool:
        """Return whether the file exists."""

    def verify(self, path: Path) -> SourceFile:
        """Return path, checksum and size of the file.

        Raises:
            MediaError: the file cannot be used.
        """

    def name(self, path: Path) -> str:
        """Return the file's path below the source, with slashes."""


_QUICK_CLIP_S = 5e-4
"""Time of a clip below which threads would only wait for each other: the files are tiny, or in the cache."""

_SLOW_PARTS = 3  # in succession, after which threads are used: the first includes imports


def validate_clips(
    clips: Sequence[Clip],
    files: FileLookup,
    audio: AudioConfig,
    *,
    threads: int = 1,
    advance: Advance = lambda done: None,
) -> Iterator[ValidClip | QuarantinedClip]:
    """Verify the files of each clip. Yield the valid clips and the clips to quarantine in their order.

    Args:
        clips: clips of the recipe.
        files: lookup of the files.
        audio: settings that decide whether a clip needs its separate audio file.
        threads: number of files hashed in parallel, unless each takes almost no time.
        advance: called with 1 after each clip.
    """

    def validate(part: Sequence[Clip]) -> list[ValidClip | QuarantinedClip]:
        results = []
        for clip in part:
            results.append(_validate_clip(clip, audio, files))
            advance(1)
        return results

    # A task of the pool costs as much as a small file.
    threads = max(threads, 1)
    size = max(1, min(_MAX_PART, len(clips) // (16 * threads)))
    parts = (clips[start : start + size] for start in range(0, len(clips), size))
    slow_parts = 0
    while slow_parts < _SLOW_PARTS and (part := next(parts, ())):
        began = time.perf_counter()
        results = validate(part)
        is_slow = time.perf_counter() - began >= _QUICK_CLIP_S * len(part)
        slow_parts = slow_parts + 1 if is_slow else 0
        yield from results
    for results in map_in_threads(validate, parts, threads, ahead=4 * threads):
        yield from results


def _validate_clip(clip: Clip, audio: AudioConfig, files: FileLookup) -> ValidClip | QuarantinedClip:
    try:
        audio_path = _audio_file(clip, audio, files)
    except MediaError as error:
        has_video = clip.video is not None and files.has(clip.video)
        return QuarantinedClip(clip.key, error.reason, error.detail, "video" if has_video else "")
    try:
        if clip.video is None:
            video = None
        elif not files.has(clip.video):
            raise MediaError(QuarantineReason.MISSING_VIDEO, f"there is no {files.name(clip.video)}")
        else:
            video = files.verify(clip.video)
    except MediaError as error:
        return QuarantinedClip(clip.key, error.reason, error.detail, "audio" if audio_path else "")
    try:
        return ValidClip(clip, video, files.verify(audio_path) if audio_path else None)
    except MediaError as error:
        return QuarantinedClip(clip.key, error.reason, error.detail, "video" if video else "")


def _audio_file(clip: Clip, audio: AudioConfig, files: FileLookup) -> Path | None:
    if audio.source == "container":
        if clip.is_image or clip.video is None:
            detail = "a still image has no sound of its own" if clip.is_image else "the dataset has no videos"
            raise MediaError(QuarantineReason.MISSING_AUDIO, detail)
        return None
    if clip.audio is not None and files.has(clip.audio):
        return clip.audio
    if audio.source == "wav" or clip.is_image or clip.video is None:
        missing = (
            f"there is no {clip.audio.name}" if clip.audio else "the dataset has no separate audio for it"
        )
        raise MediaError(QuarantineReason.MISSING_AUDIO, missing)
    return None


def _suffix(path: str) -> str:
    # A PurePosixPath would take ten times as long, which counts for 200,000 files.
    return splitext(basename(path))[1].lower()


def _name_key(path: str) -> str:
    """Return the name of a file with its suffix in lower case, as copies write `.WAV` for `.wav`."""
    return splitext(basename(path))[0] + _suffix(path)


class LocalFiles:
    """Files of a folder, compared with a manifest by path, by name in another layout, or by content.

    A table of the manifest is complete: a file of one of its types that it does not list is a mismatch. Files
    of other types, such as videos that the user converted, are accepted without verification.

    The container format of a file with the manifest's checksum is not checked: it is decoded later anyway,
    and the plan is then the same before and after the download.

    Args:
        root: source folder, to which paths are relative.
        manifest: checksums to verify; None skips the verification.
        checksums: cache of the checksums of unchanged files; None reads every file.
        max_bytes: size of the largest file that `verify` reads; None reads all.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest | None,
        checksums: ChecksumCache | None,
        max_bytes: int | None = None,
    ) -> None:
        entries = manifest.files if manifest else ()
        self.root = root
        self._max_bytes = max_bytes
        self._prefix = f"{root.as_posix().rstrip('/')}/" if root.parts else ""
        self.checksums = checksums
        self.by_path = {entry.path: entry for entry in entries}
        counts = Counter(_name_key(entry.path) for entry in entries)
        self.by_name = {name: entry for entry in entries if counts[name := _name_key(entry.path)] == 1}
        self.listed_checksums = {entry.checksum for entry in entries}
        tables = manifest.tables.values() if manifest else ()
        self.listed_suffixes = {_suffix(entry.path) for table in tables for entry in table}

    def has(self, path: Path) -> bool:
        """Return whether the file exists; True if the system does not say: `verify` gives the reason."""
        try:
            return path.is_file()
        except OSError:
            return True

    def name(self, path: Path) -> str:
        """Return the path below the root, or the bare name of a file elsewhere."""
        return path.as_posix().removeprefix(self._prefix) if self._has(path) else path.name

    def _has(self, path: Path) -> bool:
        """Return whether a path is below the root."""
        return path.as_posix().startswith(self._prefix) and (bool(self._prefix) or not path.is_absolute())

    def verify(self, path: Path) -> SourceFile:
        """Return path, checksum and size of the file, read from disk.

        Raises:
            MediaError: the file is empty, too large, a git-LFS pointer, not media, or has another checksum.
        """
        from avdata.media.formats import detect_format  # noqa: PLC0415  # decoding libraries load only when files are read

        name = self.name(path)
        try:
            size = path.stat().st_size
            if self._max_bytes is not None and size > self._max_bytes:
                raise MediaError(QuarantineReason.TOO_LARGE, f"{size:,} bytes")
            file, mismatch = self._compare(path, name)
            if file.verified_by is None:
                detect_format(self._content(path, name))
        except MediaError as error:
            raise MediaError(error.reason, f"{name}: {error.detail}") from error
        except OSError as error:
            raise MediaError(QuarantineReason.UNREADABLE, f"{name}: {error.strerror}") from error
        if mismatch:
            raise MediaError(QuarantineReason.CHECKSUM, f"{name}: {mismatch}")
        return file

    def verify_list(self, path: Path) -> SourceFile:
        """Return path, checksum and size of a list of clips, labels or splits.

        Raises:
            SourceError: the list cannot be read, or has another checksum.
        """
        try:
            file, mismatch = self._compare(path, self.name(path))
        except OSError as error:
            msg = f"List cannot be read: {path} ({error.strerror})."
            raise SourceError(msg) from error
        if mismatch:
            msg = f"Checksum mismatch: {path} is not the published list ({mismatch})."
            hint = "Use the dataset's own file, or --no-checksums if you changed it."
            raise SourceError(msg, hint=hint)
        return file

    def _compare(self, path: Path, name: str) -> tuple[SourceFile, str]:
        """Return the file and how it contradicts the manifest; an empty text if it does not."""
        known = self.by_path.get(name) or self.by_name.get(_name_key(path.name))
        sha256, listed = self._checksums(path, name, known)
        file = SourceFile(name, sha256, path.stat().st_size)
        if known is None:
            if f"sha256:{sha256}" in self.listed_checksums:
                return replace(file, verified_by="sha256"), ""
            is_covered = _suffix(name) in self.listed_suffixes
            return file, f"sha256:{sha256}, which the manifest does not list" if is_covered else ""
        if listed != known.checksum and listed not in known.variants:
            return file, f"{listed}, and the manifest says {known.checksum}"
        algorithm = listed.partition(":")[0]
        return replace(file, verified_by=algorithm, variant=known.variants.get(listed)), ""

    def check_listed(self, path: Path) -> str | None:
        """Compare a file with its checksum in the manifest. A file that the manifest lacks is not read.

        Returns:
            Algorithm of the checksum; None if the manifest lacks the file.

        Raises:
            MediaError: CHECKSUM.
        """
        name = self.name(path)
        if name not in self.by_path:
            return None
        file, mismatch = self._compare(path, name)
        if mismatch:
            raise MediaError(QuarantineReason.CHECKSUM, f"{name}: {mismatch}")
        return file.verified_by

    def _content(self, path: Path, name: str) -> Path:
        """Return the file to read; `path` has its size and modification time."""
        return path

    def _checksums(self, path: Path, name: str, known: FileEntry | None) -> tuple[str, str]:
        """Return the SHA-256 and the checksum in the manifest's algorithm."""
        cached = self.checksums.get(name) if self.checksums else None
        algorithm = known.checksum.partition(":")[0] if known else "sha256"
        if cached is not None and cached.startswith("sha256:") and algorithm == "sha256":
            return cached.removeprefix("sha256:"), cached
        stat = path.stat()
        content = self._content(path, name)
        sha256 = hash_file(content)
        listed = f"{algorithm}:{sha256 if algorithm == 'sha256' else hash_file(content, algorithm)}"
        if self.checksums and algorithm == "sha256" and self._has(path):
            self.checksums.store(name, f"sha256:{sha256}", stat)
        return sha256, listed


class ManifestFiles:
    """Files that a manifest lists by SHA-256 and that are downloaded later.

    Args:
        root: folder of the download.
        files: entries of the manifest.
    """

    def __init__(self, root: Path, files: Iterable[FileEntry]) -> None:
        self.root = root
        self.entries = {entry.path: entry for entry in files}

    def name(self, path: Path) -> str:
        """Return the path below the root."""
        return path.relative_to(self.root).as_posix()

    def has(self, path: Path) -> bool:
        """Return whether the manifest lists the file."""
        return self.name(path) in self.entries

    def verify(self, path: Path) -> SourceFile:
        """Return path, checksum and size of the manifest; the download verifies them."""
        entry = self.entries[self.name(path)]
        sha256 = entry.checksum.removeprefix("sha256:")
        return SourceFile(entry.path, sha256, entry.bytes or 0, verified_by="sha256")
