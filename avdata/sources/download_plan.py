"""What a download has to fetch: from a manifest, a choice of clips and what is on disk, to a list of files.

A source is one of three things. With `{path}` in its URLs it is the files of its table (or, without a table,
of the manifest itself). With `unpack` it is an archive, kept in `.avdata/` until it is unpacked. Otherwise
it is one file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from avdata.errors import AvdataError, SourceError, UsageError
from avdata.manifest import FileEntry, License, Manifest, Source
from avdata.recipe import Clip, Recipe
from avdata.selection import limit_clips
from avdata.sources.checksums import ChecksumCache
from avdata.sources.source_dir import archive_path, free_bytes, is_unpacked
from avdata.sources.types import FileRequest
from avdata.sources.url_schemes import expand_url, server_name
from avdata.storage.paths import is_safe_relative_path


@dataclass(frozen=True, slots=True)
class ClipChoice:
    """Which clips are wanted; everything when nothing is said.

    Attributes:
        limit: so many, spread over splits and labels as `prepare --limit` spreads them.
        split: `train`, `val` or `test` only.
        split_by: the way of splitting, checked already.
        keys: these clips only, in this order; none at all are the dataset's lists and other files of no clip.
    """

    split_by: str
    limit: int | None = None
    split: str | None = None
    keys: Sequence[str] | None = None

    @property
    def everything(self) -> bool:
        """Whether no clip is left out."""
        return self.limit is None and self.split is None and self.keys is None


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What a download would do.

    Attributes:
        name: of the dataset.
        root: the folder the files go into.
        files: what is fetched, in order; archives are below `.avdata/`.
        bytes: of those files, as far as the manifest knows, less what lies there in parts.
        unknown: how many of them have no size in the manifest.
        unverified: files on disk that are read and proven first; those that are wrong are fetched.
        present: how many files are there and proven.
        unpacked: sources that are archives and still have to be unpacked.
        sources: names of the sources that are needed.
        hosts: where the files come from, in order of preference.
        free: bytes free on the disk of `root`.
        license: what the data's owner allows.
        notes: what a person should know, a sentence each.
        partial: only lists that the split is made from; which clips are wanted is known when they are there.
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
    """What has to be fetched into `root`; reads names, sizes and times, never a file's content.

    `lost` names sources that cannot be had: those that stand in for them are taken.

    Raises:
        UsageError: the choice leaves no clip.
        AvdataError: the manifest names a path outside of the dataset's folder.
    """
    applying = [source for source in manifest.sources if _applies(source, choice.split_by)]
    needed = _with_substitutes(applying, root, lost)
    order = _order(recipe, manifest, root, choice, needed)
    if order.partial:
        needed = [source for source in needed if not has_file_list(source) and not source.unpack]
    with ChecksumCache(root) as checksums:
        state = _State(root, checksums, rehash=rehash)
        for source in needed:
            state.add(source, manifest, order.positions)
    places = order.positions or {}
    files = sorted(state.files, key=lambda wanted: places.get(wanted.path, -1))
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
        notes=(order.note,) if order.note else (),
        partial=order.partial,
    )


def listed_files(source: Source, manifest: Manifest) -> tuple[FileEntry, ...]:
    """The files that a source lists, by its table or, without one, by the manifest."""
    return manifest.tables[source.table] if source.table else manifest.files


class _State:
    """Sorts what the sources list into what is there and what is not."""

    def __init__(self, root: Path, checksums: ChecksumCache, *, rehash: bool) -> None:
        self.root = root
        self.checksums = checksums
        self.rehash = rehash
        self.files: list[FileRequest] = []
        self.unverified: list[FileEntry] = []
        self.unpacked: list[Source] = []
        self.present = 0

    def add(self, source: Source, manifest: Manifest, chosen: Mapping[str, int] | None) -> None:
        if source.unpack:
            if is_unpacked(self.root, source):
                self.present += 1
                return
            self.unpacked.append(source)
            self._request(
                FileRequest(archive_path(source), source.urls, source.checksum, source.bytes, source.name)
            )
        elif has_file_list(source):
            for facts in listed_files(source, manifest):
                if chosen is None or facts.path in chosen:
                    name = (
                        facts.path.removeprefix(f"{source.into.rstrip('/')}/") if source.into else facts.path
                    )
                    urls = tuple(expand_url(url, name) for url in source.urls)
                    self._request(FileRequest(facts.path, urls, facts.checksum, facts.bytes, source.name))
        else:
            self._request(
                FileRequest(_single(source), source.urls, source.checksum, source.bytes, source.name)
            )

    def _request(self, request: FileRequest) -> None:
        if not is_safe_relative_path(request.path):
            msg = f"the manifest names the path {request.path!r}, which is not below the dataset's folder"
            raise AvdataError(msg)
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
    """Whether a source is many files, each with its own URL."""
    return not source.unpack and (source.table is not None or any("{path}" in url for url in source.urls))


def _single(source: Source) -> str:
    if source.into and not source.into.endswith("/"):
        return source.into
    name = PurePosixPath(urlsplit(source.urls[0]).path).name if source.urls else ""
    return f"{source.into}{name or source.name}"


def _applies(source: Source, split_by: str) -> bool:
    ways = {split_by, split_by.partition(":")[0]}
    return not source.splits or not ways.isdisjoint(source.splits)


def _with_substitutes(sources: Sequence[Source], root: Path, lost: Collection[str]) -> list[Source]:
    """The sources without those that are lost, or without those that would stand in for what is not."""
    primary = [source for source in sources if source.instead_of is None]
    for source in primary:
        others = [other for other in sources if other.instead_of == source.name]
        if others and not _is_there(source, root) and all(_is_there(other, root) for other in others):
            lost = {*lost, source.name}
    return [
        source
        for source in sources
        if (source.name not in lost if source.instead_of is None else source.instead_of in lost)
    ]


def _is_there(source: Source, root: Path) -> bool:
    return is_unpacked(root, source) if source.unpack else (root / _single(source)).is_file()


def _missing_bytes(root: Path, request: FileRequest) -> int:
    part = root / f"{request.path}.part"
    return max(0, (request.bytes or 0) - (part.stat().st_size if part.is_file() else 0))


@dataclass(frozen=True, slots=True)
class _FetchOrder:
    """Each wanted path's place in the order of fetching; None when all files come as they are listed."""

    positions: Mapping[str, int] | None
    note: str = ""
    partial: bool = False


def _order(
    recipe: Recipe, manifest: Manifest, root: Path, choice: ClipChoice, needed: Sequence[Source]
) -> _FetchOrder:
    paths = [
        facts.path for source in needed if has_file_list(source) for facts in listed_files(source, manifest)
    ]
    if recipe.clips_from_paths is None or not paths:
        whole = f"{recipe.name} comes in archives: all of it is fetched, and the choice is made afterwards"
        return _FetchOrder(None, "" if choice.everything else whole)
    try:
        clips = recipe.clips_from_paths(root, paths, choice.split_by)
    except SourceError:
        lists = [source for source in needed if not has_file_list(source) and not source.unpack]
        if not choice.everything and all(_is_there(source, root) for source in lists):
            raise
        first = f"the lists of the split {choice.split_by} come first; they say which clips are wanted"
        return _FetchOrder(None) if choice.everything else _FetchOrder(None, first, partial=True)
    picked = _choose_clips(clips, choice)
    if not picked and not choice.everything and choice.keys != ():
        msg = f"no clip of {recipe.name} is left by this choice"
        raise UsageError(msg, hint=f"splits: {', '.join(sorted({clip.split for clip in clips}))}")
    # Files that belong to no clip are metadata, and come first; a clip's files come together.
    of_clips = {path for clip in clips for path in _paths(clip)}
    order = {path: -1 for path in paths if path not in of_clips}
    for place, clip in enumerate(picked):
        for path in _paths(clip):
            order.setdefault(path, place)
    return _FetchOrder(order)


def _choose_clips(clips: Sequence[Clip], choice: ClipChoice) -> list[Clip]:
    if choice.everything:
        return list(clips)
    places = None if choice.keys is None else {key: place for place, key in enumerate(choice.keys)}
    kept = [
        clip
        for clip in clips
        if choice.split in (None, clip.split)
        and (places is None or clip.key in places)
        and not (choice.limit is not None and clip.excluded)
    ]
    if places is not None:
        kept.sort(key=lambda clip: places[clip.key])
    return kept if choice.limit is None else limit_clips(kept, choice.limit, seed=0)


def _paths(clip: Clip) -> Iterator[str]:
    for path in (clip.video, clip.audio):
        if path is not None:
            yield path.as_posix()
