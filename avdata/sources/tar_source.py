"""Tars of clips as a source, in the WebDataset layout: the files of one clip share a key.

`webdataset` expands the pattern and defines keys and extensions: a name is split at the first dot after its
last slash. Its reader is not used: it ends silently at a damaged header, unpickles members, and runs a shell
for `pipe:` URLs. Importing it costs 0.7 GB, so only the planning process does.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from avdata.errors import QuarantineReason, SourceError, UsageError
from avdata.progress import Progress
from avdata.selection import MAX_KEY_LENGTH
from avdata.sources.object_storage import CONNECTIONS, MEDIA_SUFFIXES, holds_remote_tars, survey_source
from avdata.sources.source_dir import STATE_DIR
from avdata.sources.tar_index import TarIndex, TarMember, index_tar
from avdata.sources.tar_index_cache import index_stored_tar
from avdata.storage.paths import walk_files
from avdata.storage.remote import is_url
from avdata.storage.remote_files import list_files
from avdata.storage.threads import map_in_threads

log = logging.getLogger(__name__)

_PATTERN_HINT = "Use --source with a folder of tars, one tar, or a pattern such as 'tars/{0000..0007}.tar'."


@dataclass(frozen=True, slots=True)
class TarSample:
    """Members of a tar with the same key.

    Attributes:
        tar: path of the tar below the source, with slashes.
        key: key in the tar.
        members: members by extension in lower case, such as `mp4` or `left.wav`.
        damage: reason and detail if members are damaged or may be lost; None if the sample is intact.
    """

    tar: str
    key: str
    members: Mapping[str, TarMember]
    damage: tuple[QuarantineReason, str] | None = None


@dataclass(frozen=True)
class TarSource:
    """Tars of a source.

    Attributes:
        root: folder that contains all of them.
        tars: their paths, sorted.
        url: URL of the folder in object storage, of which `root` has placeholders; None for files.
        progress: called with `index`, the number of indexed tars and their total.
    """

    root: Path
    tars: tuple[Path, ...]
    url: str | None = None
    progress: Progress = field(default=lambda stage, done, total: None, repr=False, compare=False)

    def tar_name(self, tar: Path) -> str:
        """Return the path of a tar below the root, with slashes."""
        return tar.relative_to(self.root).as_posix()

    @cached_property
    def samples(self) -> tuple[TarSample, ...]:
        """Samples of all tars, sorted by tar, then by key.

        Raises:
            SourceError: a tar cannot be indexed.
        """
        names, indices = [self.tar_name(tar) for tar in self.tars], {}
        listing = list_files(self.url) if self.url else {}

        def index(tar: Path) -> TarIndex:
            name = self.tar_name(tar)
            if self.url is None:
                return index_tar(tar)
            etag = listing[name].etag if name in listing else ""
            return index_stored_tar(tar, f"{self.url}/{name}", etag)

        self.progress("index", 0, len(self.tars))
        found = map_in_threads(index, self.tars, CONNECTIONS if self.url else 1)
        for name, own in zip(names, found, strict=True):
            indices[name] = own
            self.progress("index", len(indices), len(self.tars))
        groups = {name: list(_group(name, index.members)) for name, index in indices.items()}
        extensions = {extension for samples in groups.values() for s in samples for extension in s.members}
        return tuple(
            sample
            for name, samples in groups.items()
            for sample in _mark_damage(samples, name, indices[name], extensions)
        )

    def path(self, sample: TarSample, extension: str) -> Path:
        """Return the path `TAR/KEY.EXTENSION` that stands for a member. No such file exists on disk.

        Its last part has only the characters `A-Z a-z 0-9 _ - .`, if the extension has.
        """
        return self.root / sample.tar / f"{clean_key(sample.key)}.{extension}"

    @cached_property
    def members(self) -> dict[Path, TarMember]:
        """Members by their `path`. Of several with the same path, the first is kept."""
        found: dict[Path, TarMember] = {}
        for sample in self.samples:
            for extension, member in sample.members.items():
                found.setdefault(self.path(sample, extension), member)
        return found


def open_tars(source: str | Path, progress: Progress = lambda stage, done, total: None) -> TarSource:
    """Return the tars of a folder, a pattern with braces or wildcards, a URL of a folder, or one tar.

    Args:
        source: path, pattern or URL.
        progress: see `TarSource`.

    Raises:
        SourceError: no tar matches, or one that the pattern names is missing.
        UsageError: the pattern is malformed.
    """
    url = str(source).rstrip("/") if is_url(source) else None
    path = survey_source(url, "tars", {*MEDIA_SUFFIXES, ".tar"}) if url else Path(source)
    if path.is_dir():
        tars, root = _find_tars(path), path
    elif path.is_file():
        tars, root = [path], path.parent
    else:
        tars = _expand(str(path))
        root = Path(os.path.commonpath([tar.parent for tar in tars])) if tars else path
    if not tars:
        msg = f"No tar matches the source {source}."
        raise SourceError(msg, hint=_PATTERN_HINT)
    return TarSource(root, tuple(tars), url, progress)


def holds_tars(source: str | Path) -> bool:
    """Return whether a source is a tar, a pattern of tars, or a folder with tars in it."""
    if is_url(source):
        return holds_remote_tars(str(source))
    path = Path(source)
    return any(file.suffix == ".tar" for file in walk_files(path)) if path.is_dir() else path.suffix == ".tar"


def _find_tars(root: Path) -> list[Path]:
    """Return the tars below a folder, sorted, without those in hidden folders and in prepared datasets."""
    outputs = {mark.parent for name in ("dataset.json", STATE_DIR) for mark in root.rglob(name)} - {root}
    return sorted(
        tar
        for tar in root.rglob("*.tar")
        if outputs.isdisjoint(tar.parents)
        and not any(part.startswith(".") for part in tar.relative_to(root).parts)
    )


def _expand(pattern: str) -> list[Path]:
    """Return the tars of a pattern with braces, `*` and `?`, sorted."""
    from webdataset.shardlists import expand_urls  # noqa: PLC0415  # costs 0.7 GB

    try:
        names = expand_urls(pattern)
    except ValueError as error:  # of braceexpand: unbalanced braces
        msg = f"Invalid pattern of --source: {pattern} ({error})."
        raise UsageError(msg, hint=_PATTERN_HINT) from error
    tars: list[Path] = []
    for name in names:
        tars += map(Path, glob.glob(name)) if glob.has_magic(name) else [Path(name)]
    missing = [tar for tar in tars if not tar.is_file()]
    if missing and len(missing) < len(tars):
        msg = f"Source {pattern} is incomplete: {len(missing):,} of {len(tars):,} tars are missing."
        raise SourceError(msg, hint=f"The first one is {missing[0]}. Download it, or change the pattern.")
    return [] if missing else sorted(set(tars))


def _group(tar: str, members: Sequence[TarMember]) -> Iterator[TarSample]:
    """Yield the samples of a tar, sorted by key. Members of one key need not be adjacent."""
    from webdataset.tariterators import base_plus_ext, group_by_keys  # noqa: PLC0415  # costs 0.7 GB

    files = [(member.name.removeprefix("./"), member) for member in members]
    named = sorted((base_plus_ext(name)[0] or "", number) for number, (name, _) in enumerate(files))
    repeated: dict[str, str] = {}
    current = ""

    def entries() -> Iterator[dict[str, Any]]:
        nonlocal current
        for key, number in named:
            current = key
            yield {"fname": files[number][0], "data": files[number][1], "__url__": tar}

    def skip_repeated(error: Exception) -> bool:
        repeated[current] = f"{tar}: two members of this key have the same extension"
        return isinstance(error, ValueError)

    for group in group_by_keys(entries(), handler=skip_repeated):
        key = group["__key__"]
        found = {extension: member for extension, member in group.items() if not extension.startswith("__")}
        cut = next((member for member in found.values() if not member.is_complete), None)
        damage = None
        if key in repeated:
            damage = QuarantineReason.DUPLICATE_KEY, repeated[key]
        elif cut is not None:
            detail = f"{tar} ends at byte {cut.tar_bytes:,}, inside a member of this key"
            damage = QuarantineReason.TRUNCATED, detail
        yield TarSample(tar, key, found, damage)


def _mark_damage(
    samples: Sequence[TarSample], tar: str, index: TarIndex, extensions: set[str]
) -> list[TarSample]:
    """Mark the samples beside a gap that lack an extension which others have.

    A lost member may belong to the sample before or after the gap. A sample with all extensions of the
    source has lost none.
    """
    damaged: dict[str, tuple[QuarantineReason, str]] = {}
    keys = {member.name: sample.key for sample in samples for member in sample.members.values()}
    for gap in index.gaps:
        log.warning("Damaged tar %s: %s; clips there may be lost.", tar, gap.detail)
        for member in index.members[max(gap.position - 1, 0) : gap.position + 1]:
            if member.name in keys:
                damaged[keys[member.name]] = gap.reason, f"{tar}: {gap.detail}, beside members of this key"
    if any(not member.is_complete for member in index.members):
        log.warning("Truncated tar %s: later clips may be lost.", tar)
    return [
        TarSample(sample.tar, sample.key, sample.members, damaged[sample.key])
        if sample.key in damaged and sample.damage is None and not extensions <= sample.members.keys()
        else sample
        for sample in samples
    ]


def clean_key(name: str) -> str:
    """Return a key of a tar as a clip key, which has only the characters `A-Z a-z 0-9 _ -`.

    Slashes become underscores. A key with other characters, or one that is too long, gets a part of its
    SHA-256, so that different keys stay different.

    >>> clean_key("anger/1001_DFA"), clean_key("straße 1")
    ('anger_1001_DFA', 'stra_e_1-ee84de58')
    """
    key = re.sub("^__+", "_", re.sub(r"[^A-Za-z0-9_-]", "_", name))
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    if not re.search("[A-Za-z0-9]", key):
        return f"clip-{digest[:16]}"
    if len(key) > MAX_KEY_LENGTH:
        return f"{key[: MAX_KEY_LENGTH - 17]}-{digest[:16]}"
    if re.search(r"[^A-Za-z0-9_/-]", name):
        return f"{key[: MAX_KEY_LENGTH - 9]}-{digest[:8]}"
    return key
