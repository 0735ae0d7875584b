"""Validation of clips: each file exists, has the checksum of the manifest, or else looks like media.

Nothing is decoded. Clips that fail go to quarantine before the shards are planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from avdata.config.schema import AudioConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.manifest import FileEntry, Manifest
from avdata.recipe import Clip
from avdata.selection import QuarantinedClip
from avdata.sources.checksums import ChecksumCache
from avdata.sources.tar_index import TarMember
from avdata.storage.hashing import hash_file

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Verified source file: path below the source, SHA-256, size in bytes, and its place in a tar if any."""

    path: str
    sha256: str
    bytes: int
    member: TarMember | None = None


@dataclass(frozen=True, slots=True)
class ValidClip:
    """Clip whose files are verified; `audio` is None if the video's own audio track is used."""

    clip: Clip
    video: SourceFile
    audio: SourceFile | None


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


def validate_clips(
    clips: Sequence[Clip],
    files: FileLookup,
    audio: AudioConfig,
    *,
    threads: int = 1,
    advance: Advance = lambda done: None,
) -> tuple[list[ValidClip], list[QuarantinedClip]]:
    """Verify the files of each clip.

    Args:
        clips: clips of the recipe.
        files: lookup of the files.
        audio: settings that decide whether a clip needs its separate audio file.
        threads: number of files hashed in parallel.
        advance: called with 1 after each clip.

    Returns:
        The valid clips and the clips to quarantine, both in the order of `clips`.
    """

    def validate(clip: Clip) -> ValidClip | QuarantinedClip:
        result = _validate_clip(clip, audio, files)
        advance(1)
        return result

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        results = list(pool.map(validate, clips))
    valid = [result for result in results if isinstance(result, ValidClip)]
    return valid, [result for result in results if isinstance(result, QuarantinedClip)]


def _validate_clip(clip: Clip, audio: AudioConfig, files: FileLookup) -> ValidClip | QuarantinedClip:
    try:
        audio_path = _audio_file(clip, audio, files)
    except MediaError as error:
        return QuarantinedClip(clip.key, error.reason, error.detail, "video" if files.has(clip.video) else "")
    try:
        if not files.has(clip.video):
            raise MediaError(QuarantineReason.MISSING_VIDEO, f"there is no {files.name(clip.video)}")
        video = files.verify(clip.video)
    except MediaError as error:
        return QuarantinedClip(clip.key, error.reason, error.detail, "audio" if audio_path else "")
    try:
        return ValidClip(clip, video, files.verify(audio_path) if audio_path else None)
    except MediaError as error:
        return QuarantinedClip(clip.key, error.reason, error.detail, "video")


def _audio_file(clip: Clip, audio: AudioConfig, files: FileLookup) -> Path | None:
    if audio.source == "container":
        if clip.is_image:
            raise MediaError(QuarantineReason.MISSING_AUDIO, "a still image has no sound of its own")
        return None
    if clip.audio is not None and files.has(clip.audio):
        return clip.audio
    if audio.source == "wav" or clip.is_image:
        missing = (
            f"there is no {clip.audio.name}" if clip.audio else "the dataset has no separate audio for it"
        )
        raise MediaError(QuarantineReason.MISSING_AUDIO, missing)
    return None


def _checksum_error(name: str, listed: str, known: FileEntry) -> MediaError:
    return MediaError(QuarantineReason.CHECKSUM, f"{name}: {listed}, and the manifest says {known.checksum}")


class LocalFiles:
    """Files of a folder, compared with a manifest by path or, in a flat folder, by name.

    The container format of a file with the manifest's checksum is not checked: it is decoded later anyway,
    and the plan is then the same before and after the download.

    Args:
        root: source folder, to which paths are relative.
        manifest: checksums to verify; None skips the verification.
        checksums: cache of the checksums of unchanged files; None reads every file.
    """

    def __init__(self, root: Path, manifest: Manifest | None, checksums: ChecksumCache | None) -> None:
        entries = manifest.files if manifest else ()
        self.root = root
        self.checksums = checksums
        self.by_path = {entry.path: entry for entry in entries}
        counts = Counter(Path(entry.path).name for entry in entries)
        self.by_name = {
            Path(path).name: entry for path, entry in self.by_path.items() if counts[Path(path).name] == 1
        }

    def has(self, path: Path) -> bool:
        """Return whether the file exists."""
        return path.is_file()

    def name(self, path: Path) -> str:
        """Return the path below the root, or the bare name of a file elsewhere."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def verify(self, path: Path) -> SourceFile:
        """Return path, checksum and size of the file, read from disk.

        Raises:
            MediaError: the file is empty, a git-LFS pointer, not media, or has another checksum.
        """
        from avdata.media.formats import detect_format  # noqa: PLC0415  # decoding libraries load only when files are read

        name = self.name(path)
        known = self.by_path.get(name) or self.by_name.get(path.name)
        try:
            sha256, listed = self._checksums(path, name, known)
            if known is None or listed != known.checksum:
                detect_format(path)
        except MediaError as error:
            raise MediaError(error.reason, f"{name}: {error.detail}") from error
        except OSError as error:
            raise MediaError(QuarantineReason.UNREADABLE, f"{name}: {error.strerror}") from error
        if known is not None and listed != known.checksum:
            raise _checksum_error(name, listed, known)
        return SourceFile(name, sha256, path.stat().st_size)

    def check_listed(self, path: Path) -> None:
        """Compare a file with its checksum in the manifest. A file that the manifest lacks is not read.

        Raises:
            MediaError: CHECKSUM.
        """
        name = self.name(path)
        known = self.by_path.get(name)
        if known is None:
            return
        _, listed = self._checksums(path, name, known)
        if listed != known.checksum:
            raise _checksum_error(name, listed, known)

    def _checksums(self, path: Path, name: str, known: FileEntry | None) -> tuple[str, str]:
        """Return the SHA-256 and the checksum in the manifest's algorithm."""
        cached = self.checksums.get(name) if self.checksums else None
        algorithm = known.checksum.partition(":")[0] if known else "sha256"
        if cached is not None and cached.startswith("sha256:") and algorithm == "sha256":
            return cached.removeprefix("sha256:"), cached
        stat = path.stat()
        sha256 = hash_file(path)
        listed = f"{algorithm}:{sha256 if algorithm == 'sha256' else hash_file(path, algorithm)}"
        if self.checksums and algorithm == "sha256" and path.is_relative_to(self.root):
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
        return SourceFile(entry.path, entry.checksum.removeprefix("sha256:"), entry.bytes or 0)
