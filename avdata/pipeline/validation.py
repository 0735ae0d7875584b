"""Which clips can be prepared: each file a clip needs is there, is media, and is what the manifest says.

Nothing is decoded here; a clip that fails is set aside with its reason before any shard is planned.
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
from avdata.storage.hashing import hash_file

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a clip is made from, proven: path below the source, sha256, bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ValidClip:
    """A clip whose files are all there; `audio` is None when the video's own sound is used."""

    clip: Clip
    video: SourceFile
    audio: SourceFile | None


class FileLookup(Protocol):
    """Where a clip's files are looked up: on disk, or in the manifest they will be downloaded by."""

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""

    def verify(self, path: Path) -> SourceFile:
        """The file's facts.

        Raises:
            MediaError: it cannot be used.
        """

    def name(self, path: Path) -> str:
        """The file's path below the source, with slashes."""


def validate_clips(
    clips: Sequence[Clip],
    files: FileLookup,
    audio: AudioConfig,
    *,
    threads: int = 1,
    advance: Advance = lambda done: None,
) -> tuple[list[ValidClip], list[QuarantinedClip]]:
    """Prove the files of each clip, and set aside the clips that lack one.

    Args:
        clips: what the recipe yields.
        files: says what is there, and proves it.
        audio: says whether the separate audio file is needed.
        threads: files hashed at a time.
        advance: called with 1 after each clip.
    """

    def look(clip: Clip) -> ValidClip | QuarantinedClip:
        found = _validate_clip(clip, audio, files)
        advance(1)
        return found

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = list(pool.map(look, clips))
    good = [one for one in found if isinstance(one, ValidClip)]
    return good, [one for one in found if isinstance(one, QuarantinedClip)]


def _validate_clip(clip: Clip, audio: AudioConfig, files: FileLookup) -> ValidClip | QuarantinedClip:
    try:
        sound = _audio_file(clip, audio, files)
    except MediaError as error:
        return QuarantinedClip(clip.key, error.reason, error.detail, "video" if files.has(clip.video) else "")
    try:
        if not files.has(clip.video):
            raise MediaError(QuarantineReason.MISSING_VIDEO, f"there is no {files.name(clip.video)}")
        video = files.verify(clip.video)
    except MediaError as error:
        return QuarantinedClip(clip.key, error.reason, error.detail, "audio" if sound else "")
    try:
        return ValidClip(clip, video, files.verify(sound) if sound else None)
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


class LocalFiles:
    """The files of a folder, held against a manifest's facts by path or, in a flat folder, by name.

    A file that the manifest knows and that has its checksum is not looked into: whether it can be decoded is
    found where it is decoded, so that the plan is the same before the files have arrived.

    Args:
        root: the source folder, which paths are named from.
        manifest: checksums to hold the files against; None takes them as they are.
        checksums: what was hashed before and has not changed since; None reads every file.
    """

    def __init__(self, root: Path, manifest: Manifest | None, checksums: ChecksumCache | None) -> None:
        files = manifest.files if manifest else ()
        self.root = root
        self.checksums = checksums
        self.by_path = {facts.path: facts for facts in files}
        names = Counter(Path(facts.path).name for facts in files)
        self.by_name = {Path(facts.path).name: facts for facts in files if names[Path(facts.path).name] == 1}

    def has(self, path: Path) -> bool:
        """Whether the file exists."""
        return path.is_file()

    def name(self, path: Path) -> str:
        """The path below the root, or the bare name of a file elsewhere."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def verify(self, path: Path) -> SourceFile:
        """The file's facts as measured.

        Raises:
            MediaError: it is empty, a pointer, no media, or not the file the manifest speaks of.
        """
        from avdata.media.container import detect_format  # noqa: PLC0415  # decoding libraries load only when files are read

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
            raise MediaError(
                QuarantineReason.CHECKSUM, f"{name}: {listed}, and the manifest says {known.checksum}"
            )
        return SourceFile(name, sha256, path.stat().st_size)

    def _checksums(self, path: Path, name: str, known: FileEntry | None) -> tuple[str, str]:
        """The file's sha256, and its checksum in the manifest's algorithm."""
        remembered = self.checksums.get(name) if self.checksums else None
        algorithm = known.checksum.partition(":")[0] if known else "sha256"
        if remembered is not None and remembered.startswith("sha256:") and algorithm == "sha256":
            return remembered.removeprefix("sha256:"), remembered
        stat = path.stat()
        sha256 = hash_file(path)
        listed = f"{algorithm}:{sha256 if algorithm == 'sha256' else hash_file(path, algorithm)}"
        if self.checksums and algorithm == "sha256" and path.is_relative_to(self.root):
            self.checksums.store(name, f"sha256:{sha256}", stat)
        return sha256, listed


class ManifestFiles:
    """The files that a manifest lists by sha256 and that a download will put into place.

    Args:
        root: the folder they will be in.
        files: their facts.
    """

    def __init__(self, root: Path, files: Iterable[FileEntry]) -> None:
        self.root = root
        self.facts = {facts.path: facts for facts in files}

    def name(self, path: Path) -> str:
        """The path below the root."""
        return path.relative_to(self.root).as_posix()

    def has(self, path: Path) -> bool:
        """Whether the manifest lists the file."""
        return self.name(path) in self.facts

    def verify(self, path: Path) -> SourceFile:
        """The file's facts as listed; the download proves them."""
        facts = self.facts[self.name(path)]
        return SourceFile(facts.path, facts.checksum.removeprefix("sha256:"), facts.bytes or 0)
