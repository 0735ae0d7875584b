"""Plan of a download: the files to fetch, from a manifest and a choice of clips.

A source has one of three kinds. If its URLs contain `{path}`, it is the files of its table, or of the
manifest if it has no table. If it has `unpack`, it is an archive, kept in `.avdata/` until it is extracted.
Otherwise it is one file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from avdata.errors import AvdataError, SourceError, UsageError
from avdata.manifest import FileEntry, License, Manifest, Source
from avdata.recipe import Clip, Recipe
from avdata.sources.checksums import ChecksumCache
from avdata.sources.source_dir import archive_path, is_unpacked
from avdata.sources.types import FileRequest
from avdata.sources.url_schemes import expand_url, is_by_checksum, server_name
from avdata.storage.atomic import free_bytes
from avdata.storage.paths import is_safe_relative_path


@dataclass(frozen=True, slots=True)
class ClipChoice:
    """Choice of clips; by default all of them.

    Attributes:
        split_by: split scheme; must be valid for the recipe.
        limit: number of clips, in the proportions of splits and labels as in `prepare --limit`.
        split: `train`, `val` or `test` only.
        keys: these clips only, in this order; if empty, only files that belong to no clip.
        paths: of the files of these clips, only these; None means all.
    """

    split_by: str
    limit: int | None = None
    split: str | None = None
    keys: Sequence[str] | None = None
    paths: Collection[str] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all clips are chosen."""
        return self.limit is None and self.split is None and self.keys is None


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """Plan of a download.

    Attributes:
        name: name of the dataset.
        root: folder for the files.
        files: files to fetch, in order; archives are below `.avdata/`.
        bytes: total size of `files` with a known size, less the bytes of partial files.
        unknown: number of `files` whose size is not in the manifest.
        unverified: files on disk to verify first; those with a wrong checksum are fetched.
        present: number of verified files on disk.
        unpacked: archives to extract.
        sources: names of the required sources.
        hosts: servers of the files, in order of preference.
        free: free bytes on the disk of `root`.
        license: license of the data.
        notes: remarks for the user, one sentence each.
        partial: whether the plan has only the lists of the split scheme, which the choice of clips requires.
    """

    name: str
    root: Path
    files: tuple[FileRequest, ...]
    bytes: int
    unknown: int
    unverified: tuple[FileEntry, ...]
    present: int
    unpacked: tuple[Source, ...]
    sources: tuple[str, ...]
    hosts: tuple[str, ...]
    free: int
    license: License
    notes: tuple[str, ...]
    partial: bool = False

    def __repr__(self) -> str:
        return (
            f"DownloadPlan({self.name}: {len(self.files):,} files to fetch, {self.present:,} present,"
            f" {self.bytes:,} bytes, root={str(self.root)!r})"
        )


def plan_download(
    recipe: Recipe,
    manifest: Manifest,
    root: Path,
    choice: ClipChoice,
    *,
    lost: Collection[str] = (),
    rehash: bool = False,
) -> DownloadPlan:
    """Return the plan of a download into `root`, without reading any file's content.

    Args:
        recipe: recipe of the dataset.
        manifest: manifest of the dataset.
        root: folder for the files.
        choice: clips to download.
        lost: names of unavailable sources, to be replaced by their substitutes.
        rehash: verify all files on disk again.

    Raises:
        UsageError: the choice leaves no clip.
        AvdataError: a path of the manifest is outside the dataset's folder.
    """
    applying = [source for source in manifest.sources if _applies(source, choice.split_by)]
    needed = _with_substitutes(applying, root, lost)
    order = _fetch_order(recipe, manifest, root, choice, needed)
    if order.partial:
        needed = [source for source in needed if not has_file_list(source) and not source.unpack]
    with ChecksumCache(root) as checksums:
        state = _State(root, checksums, choice.paths, rehash=rehash)
        for source in needed:
            state.add(source, manifest, order.positions)
    positions = order.positions or {}
    files = sorted(state.files, key=lambda request: positions.get(request.path, -1))
    return DownloadPlan(
        name=manifest.name,
        root=root,
        files=tuple(files),
        bytes=sum(_missing_bytes(root, request) for request in files),
        unknown=sum(request.bytes is None for request in files),
        unverified=tuple(state.unverified),
        present=state.present,
        unpacked=tuple(state.unpacked),
        sources=tuple(source.name for source in needed),
        hosts=tuple(dict.fromkeys(server_name(url) for source in needed for url in source.urls)),
        free=free_bytes(root),
        license=manifest.license,
        notes=tuple(filter(None, (order.note, _unverified_note(needed)))),
        partial=order.partial,
    )


def listed_files(source: Source, manifest: Manifest) -> tuple[FileEntry, ...]:
    """Return the files of a source: those of its table, else those of the manifest."""
    return manifest.tables[source.table] if source.table else manifest.files


def _unverified_note(sources: Sequence[Source]) -> str:
    names = [source.name for source in sources if source.checksum is None and not has_file_list(source)]
    if not names:
        return ""
    return f"Without a checksum in the manifest, verified only if the server states one: {', '.join(names)}."


class _State:
    """Collector that sorts listed files into present, unverified and missing ones."""

    def __init__(
        self, root: Path, checksums: ChecksumCache, paths: Collection[str] | None, *, rehash: bool
    ) -> None:
        self.root = root
        self.paths = paths
        self.checksums = checksums
        self.rehash = rehash
        self.files: list[FileRequest] = []
        self.unverified: list[FileEntry] = []
        self.unpacked: list[Source] = []
        self.present = 0

    def add(self, source: Source, manifest: Manifest, chosen: Mapping[str, int] | None) -> None:
        if source.unpack:
            if self.paths is not None and archive_path(source) not in self.paths:
                return
            if is_unpacked(self.root, source):
                self.present += 1
                return
            self.unpacked.append(source)
            self._request(
                FileRequest(archive_path(source), source.urls, source.checksum, source.bytes, source.name)
            )
        elif has_file_list(source):
            for entry in listed_files(source, manifest):
                if chosen is None or entry.path in chosen:
                    name = (
                        entry.path.removeprefix(f"{source.into.rstrip('/')}/") if source.into else entry.path
                    )
                    urls = tuple(expand_url(url, name) for url in source.urls)
                    self._request(FileRequest(entry.path, urls, entry.checksum, entry.bytes, source.name))
        else:
            self._request(
                FileRequest(
                    _single_file_path(source), source.urls, source.checksum, source.bytes, source.name
                )
            )

    def _request(self, request: FileRequest) -> None:
        if not is_safe_relative_path(request.path):
            msg = f"Path in the manifest is not below the dataset's folder: {request.path!r}."
            raise AvdataError(msg)
        if self.paths is not None and request.path not in self.paths:
            return
        try:
            size = (self.root / request.path).stat().st_size
        except OSError:
            self.files.append(request)
            return
        if request.bytes is not None and size != request.bytes:
            self.files.append(request)
        elif request.checksum is None or (not self.rehash and self._verified(request)):
            self.present += 1
        else:
            self.unverified.append(
                FileEntry(path=request.path, checksum=request.checksum, bytes=request.bytes)
            )
            self.files.append(request)

    def _verified(self, request: FileRequest) -> bool:
        return self.checksums.get(request.path) == request.checksum


def has_file_list(source: Source) -> bool:
    """Return whether a source is many files, with a URL for each or a store that serves them by checksum."""
    if source.unpack:
        return False
    is_store = source.checksum is None and any(is_by_checksum(url) for url in source.urls)
    return source.table is not None or is_store or any("{path}" in url for url in source.urls)


def _single_file_path(source: Source) -> str:
    if source.into and not source.into.endswith("/"):
        return source.into
    name = PurePosixPath(urlsplit(source.urls[0]).path).name if source.urls else ""
    return f"{source.into}{name or source.name}"


def _applies(source: Source, split_by: str) -> bool:
    schemes = {split_by, split_by.partition(":")[0]}
    return not source.splits or not schemes.isdisjoint(source.splits)


def _with_substitutes(sources: Sequence[Source], root: Path, lost: Collection[str]) -> list[Source]:
    """Return the sources to use: each primary source or its substitutes.

    Substitutes are used if the primary source is lost, or if only they are complete on disk.
    """
    primary = [source for source in sources if source.instead_of is None]
    for source in primary:
        others = [other for other in sources if other.instead_of == source.name]
        if others and not _is_on_disk(source, root) and all(_is_on_disk(other, root) for other in others):
            lost = {*lost, source.name}
    return [
        source
        for source in sources
        if (source.name not in lost if source.instead_of is None else source.instead_of in lost)
    ]


def _is_on_disk(source: Source, root: Path) -> bool:
    return is_unpacked(root, source) if source.unpack else (root / _single_file_path(source)).is_file()


def _missing_bytes(root: Path, request: FileRequest) -> int:
    part = root / f"{request.path}.part"
    return max(0, (request.bytes or 0) - (part.stat().st_size if part.is_file() else 0))


@dataclass(frozen=True, slots=True)
class _FetchOrder:
    """Position of each chosen path in the download order; None keeps the listed order."""

    positions: Mapping[str, int] | None
    note: str = ""
    partial: bool = False


def _fetch_order(
    recipe: Recipe, manifest: Manifest, root: Path, choice: ClipChoice, needed: Sequence[Source]
) -> _FetchOrder:
    paths = [
        entry.path for source in needed if has_file_list(source) for entry in listed_files(source, manifest)
    ]
    if recipe.clips_from_paths is None or not paths:
        note = f"{recipe.name} comes in archives: they are downloaded completely before clips are chosen."
        return _FetchOrder(None, "" if choice.is_complete else note)
    try:
        clips = recipe.list_clips_from_paths(root, paths, choice.split_by)
    except SourceError:
        lists = [source for source in needed if not has_file_list(source) and not source.unpack]
        if not choice.is_complete and all(_is_on_disk(source, root) for source in lists):
            raise
        note = f"The lists of split scheme {choice.split_by} are downloaded first: the choice requires them."
        return _FetchOrder(None) if choice.is_complete else _FetchOrder(None, note, partial=True)
    chosen_clips = _choose_clips(clips, choice)
    if not chosen_clips and not choice.is_complete and choice.keys != ():
        msg = f"No clip of {recipe.name} matches the choice of split, keys and limit."
        splits = ", ".join(sorted({clip.split for clip in clips}))
        raise UsageError(msg, hint=f"Use --split with one of: {splits}.")
    # Files that belong to no clip are metadata and come first; the files of a clip are adjacent.
    clip_paths = {path for clip in clips for path in _clip_paths(clip)}
    order = {path: -1 for path in paths if path not in clip_paths}
    for position, clip in enumerate(chosen_clips):
        for path in _clip_paths(clip):
            order.setdefault(path, position)
    return _FetchOrder(order)


def _choose_clips(clips: Sequence[Clip], choice: ClipChoice) -> list[Clip]:
    if choice.is_complete:
        return list(clips)
    positions = None if choice.keys is None else {key: number for number, key in enumerate(choice.keys)}
    clips_left = [
        clip
        for clip in clips
        if choice.split in (None, clip.split)
        and (positions is None or clip.key in positions)
        and not (choice.limit is not None and clip.excluded)
    ]
    if positions is not None:
        clips_left.sort(key=lambda clip: positions[clip.key])
    if choice.limit is None:
        return clips_left
    from avdata.selection import limit_clips  # noqa: PLC0415  # NumPy loads only for a limit

    return limit_clips(clips_left, choice.limit, seed=0)


def _clip_paths(clip: Clip) -> Iterator[str]:
    for path in (clip.video, clip.audio):
        if path is not None:
            yield path.as_posix()
