"""State folder `.avdata/` of a source folder: lock, archives and lists of extracted files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from avdata.errors import SourceError, UsageError
from avdata.manifest import FileEntry, Manifest, Source, has_manifest, load_manifest
from avdata.recipe import Recipe, load_recipe
from avdata.sources.archives import ArchiveKind, ExtractedFile, extract_archive
from avdata.sources.checksums import ChecksumCache
from avdata.storage.atomic import write_errors
from avdata.storage.locks import lock_folder
from avdata.storage.paths import check_no_symlinks, source_dir

STATE_DIR = ".avdata"

_TARS = (".tar.gz", ".tgz")


def archive_path(source: Source) -> str:
    """Return an archive's path until it is extracted, relative to the dataset's folder."""
    return f"{STATE_DIR}/{source.name}.{source.unpack}"


def unpacked_list(root: Path, source: Source) -> Path:
    """Return the path of an archive's member list, written after complete extraction."""
    return root / STATE_DIR / f"{source.name}.json"


def is_unpacked(root: Path, source: Source) -> bool:
    """Return whether all members of an archive are on disk."""
    try:
        members = json.loads(unpacked_list(root, source).read_text(encoding="utf-8"))["members"]
        return all((root / path).stat().st_size == size for path, size in members)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
    """Extract a source's archive into the dataset's folder and verify it against the table.

    Returns:
        The extracted files, with paths relative to the dataset's folder.

    Raises:
        SourceError: the archive is corrupt, unsafe or differs from the table. No file was moved to its
            final path.
    """
    assert source.unpack is not None
    prefix = f"{source.into.rstrip('/')}/" if source.into else ""
    algorithm = table[0].checksum.partition(":")[0] if table else "sha256"

    def check(staging: Path, members: list[ExtractedFile]) -> None:
        _check_table(archive, table, members, prefix)
        for member in members:
            checksums.store(prefix + member.path, member.checksum, (staging / member.path).stat())

    staging = root / STATE_DIR / f"{source.name}.unpacking"
    unpacked = extract_archive(
        archive,
        source.unpack,
        root / source.into,
        staging=staging,
        algorithm=algorithm,
        check=check,
        progress=progress,
    )
    members = [ExtractedFile(prefix + member.path, member.bytes, member.checksum) for member in unpacked]
    _write_unpacked_list(root, source, members, archive)
    return members


def _check_table(
    archive: Path, table: Sequence[FileEntry], members: Sequence[ExtractedFile], prefix: str
) -> None:
    found = {prefix + member.path: member.checksum for member in members}
    bad = [entry.path for entry in table if found.get(entry.path) != entry.checksum]
    if bad:
        absent = sum(path not in found for path in bad)
        msg = (
            f"Archive {archive} differs from the manifest: {absent:,} files are missing and"
            f" {len(bad) - absent:,} have another checksum. First: {bad[0]}."
        )
        raise SourceError(msg, hint="Delete the archive and download it again.")


def _write_unpacked_list(root: Path, source: Source, members: Sequence[ExtractedFile], archive: Path) -> None:
    content = {
        "members": [[member.path, member.bytes] for member in members],
        "archive": _archive_id(archive),
    }
    listing = unpacked_list(root, source)
    with write_errors(listing):
        draft = listing.with_name(listing.name + ".part")
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(listing)


_TAIL_BYTES = 1 << 20


def _archive_id(archive: Path) -> str:
    """Return an identifier of an archive: its size and the SHA-256 of its end.

    The end has the checksums of a zip's members, or the checksum of a tar.gz's content.
    """
    with archive.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - _TAIL_BYTES, 0))
        return f"{size}:{hashlib.sha256(stream.read()).hexdigest()}"


def fsync_dirs(root: Path, paths: Iterable[str]) -> None:
    """Sync the folders of files, so that their names are durable."""
    if os.name == "nt":
        return
    for folder in {os.path.dirname(path) for path in paths}:  # Paths would take a tenth of the time
        handle = os.open(root / folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def lock_source_dir(root: Path) -> Iterator[None]:
    """Hold an exclusive lock on a source folder until the block or the process ends.

    Raises:
        SourceError: another process holds it.
        AvdataError: the state folder, or a file in it, is a symbolic link.
    """
    state = (path.relative_to(root).as_posix() for path in (root / STATE_DIR).glob("*"))
    check_no_symlinks(root, (STATE_DIR, *state))
    conflict = SourceError(
        f"Another download is writing to {root}.",
        hint="Wait until it ends, or use --output with another folder.",
    )
    with lock_folder(root / STATE_DIR, conflict):
        yield


def unpack_archive_file(
    name_or_recipe: str | Path | Recipe, archive: Path | str, *, manifest: Manifest | None = None
) -> Path:
    """Extract an archive that the user downloaded into the recipe's source folder.

        root = unpack_archive_file("ave", "AVE_Dataset.zip")
        avdata.prepare("ave", source=root, output="out")

    Args:
        name_or_recipe: a recipe's name, the path of a recipe file, or a Recipe.
        archive: path of the archive; it is not changed.
        manifest: manifest whose file list the archive is verified with; None uses the bundled one, if the
            recipe has one.

    Returns:
        The folder with the extracted files.

    Raises:
        UsageError: the file is neither a zip nor a tar.gz.
        SourceError: the archive is corrupt, unsafe or differs from the manifest.
    """
    path = Path(archive)
    kind: ArchiveKind | None = (
        "zip" if path.suffix == ".zip" else "tar.gz" if path.name.endswith(_TARS) else None
    )
    if kind is None or not path.is_file():
        msg = f"Not an archive: {path} (supported: .zip, .tar.gz, .tgz)."
        raise UsageError(msg, hint="Use --source with the folder or the archive of the dataset's files.")
    recipe = load_recipe(name_or_recipe)
    if manifest is None and has_manifest(recipe.name):
        manifest = load_manifest(recipe.name)
    sources = manifest.sources if manifest else ()
    candidates = [source for source in sources if source.unpack == kind and source.instead_of is None]
    if len(candidates) > 1:  # one archive per speaker, for example: the name says which
        candidates = [
            source for source in candidates if any(url.endswith(f"/{path.name}") for url in source.urls)
        ]
    source = candidates[0] if candidates else Source(name="given", urls=(), unpack=kind)
    root = source_dir(recipe.name)
    if is_unpacked(root, source):
        archive_id = json.loads(unpacked_list(root, source).read_text(encoding="utf-8")).get("archive")
        if archive_id not in (None, _archive_id(path)):
            msg = f"Files of another archive in {root}: they were not extracted from {path}."
            hint = f"Remove {root}, or extract the archive yourself and use --source with its folder."
            raise SourceError(msg, hint=hint)
    else:
        table = manifest.tables[source.table] if manifest and source.table else ()
        with lock_source_dir(root), ChecksumCache(root) as checksums:
            extract_source(root, source, path, table=table, checksums=checksums)
    return root
