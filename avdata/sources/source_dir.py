"""What a folder of sources holds beside its files: `.avdata/` with the lock, archives and their lists."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from avdata.errors import SourceError, UsageError
from avdata.manifest import FileEntry, Source, load_manifest
from avdata.recipe import Recipe, load_recipe
from avdata.sources.archives import ArchiveKind, ExtractedFile, extract_archive
from avdata.sources.checksums import ChecksumCache
from avdata.storage.atomic import write_errors
from avdata.storage.locks import lock_folder
from avdata.storage.paths import source_dir

STATE_DIR = ".avdata"

_TARS = (".tar.gz", ".tgz")


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that holds `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def archive_path(source: Source) -> str:
    """Where an archive is kept until it is unpacked, below the dataset's root."""
    return f"{STATE_DIR}/{source.name}.{source.unpack}"


def unpacked_list(root: Path, source: Source) -> Path:
    """The list of what an archive held, written when all of it was in place."""
    return root / STATE_DIR / f"{source.name}.json"


def is_unpacked(root: Path, source: Source) -> bool:
    """Whether all that an archive held is still there."""
    try:
        members = json.loads(unpacked_list(root, source).read_text(encoding="utf-8"))["members"]
        return all((root / path).stat().st_size == size for path, size in members)
    except (OSError, ValueError, KeyError):
        return False


def extract_source(
    root: Path,
    source: Source,
    archive: Path,
    *,
    table: tuple[FileEntry, ...],
    checksums: ChecksumCache,
    progress: Callable[[int, int], None] | None = None,
) -> list[ExtractedFile]:
    """Unpack a source's archive into the dataset's root, held against the source's table where it has one.

    Returns:
        The members, with paths below the root.

    Raises:
        SourceError: the archive is broken, unsafe, or not what the table says; nothing was put in place then.
    """
    assert source.unpack is not None
    prefix = f"{source.into.rstrip('/')}/" if source.into else ""
    algorithm = table[0].checksum.partition(":")[0] if table else "sha256"

    def check(staging: Path, members: list[ExtractedFile]) -> None:
        held = {prefix + member.path: member.checksum for member in members}
        bad = [facts.path for facts in table if held.get(facts.path) != facts.checksum]
        if bad:
            absent = sum(path not in held for path in bad)
            msg = (
                f"{archive} does not hold what the manifest says: {absent:,} files are missing and"
                f" {len(bad) - absent:,} have another checksum; the first: {bad[0]}"
            )
            raise SourceError(msg, hint="delete it and download it again")
        for member in members:
            checksums.store(prefix + member.path, member.checksum, (staging / member.path).stat())

    kind: ArchiveKind = source.unpack
    staging = root / STATE_DIR / f"{source.name}.unpacking"
    unpacked = extract_archive(
        archive,
        kind,
        root / source.into,
        staging=staging,
        algorithm=algorithm,
        check=check,
        progress=progress,
    )
    members = [ExtractedFile(prefix + member.path, member.bytes, member.checksum) for member in unpacked]
    listing = unpacked_list(root, source)
    with write_errors(listing):
        draft = listing.with_name(listing.name + ".part")
        draft.write_text(
            json.dumps(
                {"members": [[one.path, one.bytes] for one in members], "archive": _archive_id(archive)}
            ),
            encoding="utf-8",
        )
        draft.replace(listing)
    return members


_TAIL = 1 << 20


def _archive_id(archive: Path) -> str:
    """What tells an archive from another of the same name, without reading it: its size and its end.

    There a zip has the checksums of its members, and a tar.gz that of all its content.
    """
    with archive.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - _TAIL, 0))
        return f"{size}:{hashlib.sha256(stream.read()).hexdigest()}"


def fsync_dirs(root: Path, paths: Iterable[str]) -> None:
    """Make the names of files below the root durable; their bytes are already."""
    if os.name == "nt":
        return
    for folder in {os.path.dirname(path) for path in paths}:  # a Path each takes a tenth of all time
        handle = os.open(root / folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def lock_source_dir(root: Path) -> Iterator[None]:
    """Hold the folder for one run; the hold ends with the process, however it ends."""
    conflict = SourceError(
        f"another download is writing to {root}", hint="wait for it, or choose another folder"
    )
    with lock_folder(root / STATE_DIR, conflict):
        yield


def unpack_archive_file(name_or_recipe: str | Path | Recipe, archive: Path | str) -> Path:
    """Unpack an archive that the user fetched; it stays where it is, and its files go where a download's go.

        avdata.prepare("ave", source=unpack_local("ave", "AVE_Dataset.zip"), out="out")

    Returns:
        The folder with the files, to be given as the source.

    Raises:
        UsageError: it is neither a zip nor a tar.gz.
        SourceError: it is broken, unsafe, or not what the manifest says.
    """
    path = Path(archive)
    kind: ArchiveKind | None = (
        "zip" if path.suffix == ".zip" else "tar.gz" if path.name.endswith(_TARS) else None
    )
    if kind is None or not path.is_file():
        msg = f"{path} is not an archive (.zip, .tar.gz or .tgz)"
        raise UsageError(msg, hint="--source is the folder or the archive that holds the dataset's files")
    recipe = load_recipe(name_or_recipe)
    manifest = load_manifest(recipe.name)
    ours = [source for source in manifest.sources if source.unpack == kind and source.instead_of is None]
    source = ours[0] if ours else Source(name="given", urls=(), unpack=kind)
    root = source_dir(recipe.name)
    if is_unpacked(root, source):
        held = json.loads(unpacked_list(root, source).read_text(encoding="utf-8")).get("archive")
        if held not in (None, _archive_id(path)):
            msg = f"{root} holds what was unpacked from another archive than {path}"
            hint = f"remove {root}, or unpack the archive yourself and give its folder with --source"
            raise SourceError(msg, hint=hint)
    else:
        table = manifest.tables[source.table] if source.table else ()
        with lock_source_dir(root), ChecksumCache(root) as checksums:
            extract_source(root, source, path, table=table, checksums=checksums)
    return root
