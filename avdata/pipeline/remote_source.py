"""Source files in object storage: verified by their listing if possible, and copied by the clip's node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from avdata.manifest import FileEntry, Manifest
from avdata.pipeline.validation import LocalFiles, SourceFile, ValidClip
from avdata.sources.checksums import ChecksumCache
from avdata.sources.object_storage import fetch_source_file, is_placeholder
from avdata.sources.tar_index import TarMember


class ListedFiles(LocalFiles):
    """Files of a surveyed source; see `survey_source`.

    The plan takes the SHA-256 of a file from the manifest if it lists the file with the size of the listing:
    the worker compares the content. Any other file is copied and read, since the plan states its SHA-256.

    Args:
        url: URL of the source.
        root: folder of the survey.
        manifest: checksums to verify; None skips the verification.
        checksums: cache of the checksums of unchanged files; None reads every file that must be read.
        max_bytes: size of the largest file that `verify` reads; None reads all.
    """

    def __init__(
        self,
        url: str,
        root: Path,
        manifest: Manifest | None,
        checksums: ChecksumCache | None,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(root, manifest, checksums, max_bytes)
        self.url = url

    def _content(self, path: Path, name: str) -> Path:
        if not is_placeholder(name):
            return path
        stat = path.stat()
        return fetch_source_file(self.url, name, stat.st_size, modified=stat.st_mtime)

    def _checksums(self, path: Path, name: str, known: FileEntry | None) -> tuple[str, str]:
        is_listed = known is not None and known.checksum.startswith("sha256:") and not known.variants
        if known is not None and is_listed and known.bytes == path.stat().st_size and is_placeholder(name):
            return known.checksum.removeprefix("sha256:"), known.checksum
        return super()._checksums(path, name, known)


def fetch_clip(candidate: ValidClip, url: str | None) -> ValidClip:
    """Return a clip whose files are on this node; download those of a source in object storage.

    Args:
        candidate: clip of the plan.
        url: URL of the source, or None for files on disk.

    Raises:
        AvdataError: a file cannot be read or stored.
    """
    if url is None:
        return candidate
    clip = candidate.clip
    paths, files = [], []
    for path, file in ((clip.video, candidate.video), (clip.audio, candidate.audio)):
        if file is None:  # a clip without its separate audio keeps the name of the missing file
            paths.append(path)
        elif file.member is None:
            paths.append(fetch_source_file(url, file.path, file.bytes, sha256=file.sha256))
        elif file.member.url:  # read by range when the clip is decoded
            paths.append(path)
        else:
            paths.append(path)
            file = _with_local_tar(file, file.member, url)  # noqa: PLW2901
        files.append(file)
    return ValidClip(replace(clip, video=paths[0], audio=paths[1]), files[0], files[1])


def _with_local_tar(file: SourceFile, member: TarMember, url: str) -> SourceFile:
    """Return the member of a tar with the tar's path on this node: `file.path` is `TAR/KEY.EXTENSION`."""
    tar = fetch_source_file(url, file.path.rpartition("/")[0], member.tar_bytes)
    return replace(file, member=replace(member, tar=tar))
