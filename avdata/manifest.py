"""Manifests: URLs, checksums, sizes, license, citation and expected counts of a dataset.

A manifest is `manifests/NAME.json`. The file list of a source is `NAME.files.tsv.gz`: after a header, one
line per file with `path`, `checksum` as `algorithm:hex` and `bytes`, separated by tabs, sorted by path.
A mock dataset contains its own `manifest.json` with the list inline.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Collection
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, ValidationError

from avdata.errors import AvdataError, UsageError, shorten

Checksum = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]


_MISSING_HINT = "Use --source DIR with --no-checksums, or --manifest FILE with the checksums of the files."


class _ManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_ManifestModel):
    """File of a dataset: path below the root, checksum, and size in bytes if it is known."""

    path: str
    checksum: Checksum
    bytes: int | None = Field(None, ge=0)
    variants: dict[Checksum, str] = Field(
        default_factory=dict,
        description="what differs in other published copies, by their checksum in the same algorithm",
    )


class License(_ManifestModel):
    """License of a dataset."""

    id: str = Field(description="identifier of the Hugging Face Hub: odbl, cc-by-nc-3.0, other, unknown")
    name: str
    link: str | None = None
    publish: Literal["yes", "no"] = Field(description="whether prepared shards may be published")
    note: str = Field(description="one sentence: the conditions, or why publishing is not allowed")


class Summary(_ManifestModel):
    """Size and citation of a dataset, for `avdata recipes` and `avdata info`; no preparation reads them."""

    clips: int | None = Field(None, ge=0, description="published number of clips")
    hours: float | None = Field(None, ge=0, description="total duration of the clips")
    download_bytes: int | None = Field(
        None, ge=0, description="approximate size of the download, if the sources do not state theirs"
    )
    downloads_clips: bool = Field(True, description="whether the sources include the clips, not only lists")
    bibtex: str | None = Field(None, description="BibTeX entries to cite, without a final line break")


class Source(_ManifestModel):
    """Download of a dataset: an archive, or a list of files."""

    name: str
    urls: tuple[str, ...] = Field(
        description="in order of preference; schemes https, lfs+https, gdrive, kaggle, hf, zenodo"
    )
    checksum: Checksum | None = None
    bytes: int | None = None
    unpack: Literal["zip", "tar.gz"] | None = None
    into: str = Field("", description="folder or file below the dataset's root")
    table: str | None = Field(
        None, description="file list beside the manifest; {path} in the URLs is replaced by each path"
    )
    splits: tuple[str, ...] = Field((), description="split schemes that need this source; empty: all")
    instead_of: str | None = Field(
        None, description="source that this one replaces, with others of the same value, if it fails"
    )


class Manifest(_ManifestModel):
    """Sources and facts of one dataset."""

    format: Literal[1] = 1
    name: str
    title: str
    homepage: str
    commit: str | None = None
    license: License
    citation: str
    summary: Summary = Field(
        default_factory=Summary, exclude=True, description="not part of the hash, since it changes no sample"
    )
    ethics: str | None = Field(
        None, description="obligations of users towards people who can be recognized, if there are any"
    )
    expected: dict[str, int] = Field(
        default_factory=dict, description="counts by name: clips, train, test, …"
    )
    sources: tuple[Source, ...] = ()
    files: tuple[FileEntry, ...] = Field(
        (), description="further files with checksums, such as lists; a table is complete, these need not be"
    )
    mock: bool = Field(False, description="whether the files are generated")
    tables: dict[str, tuple[FileEntry, ...]] = Field(
        default_factory=dict,
        exclude=True,
        description="file lists of the sources by name, filled when loaded",
    )

    _path: Path | None = PrivateAttr(None)

    @property
    def path(self) -> Path | None:
        """File that the manifest was read from; None for a bundled one."""
        return self._path

    @property
    def bytes(self) -> int | None:
        """Total size of the sources whose size is known; None if none is."""
        known = [source.bytes for source in self.sources if source.bytes is not None]
        return sum(known) if known else None

    @property
    def hash(self) -> str:
        """SHA-256 of all facts, including the checksums of the tables."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_manifest(manifest: str | Path, *, tables: bool = True) -> Manifest:
    """Return a manifest with its file tables.

    Args:
        manifest: name of a recipe with a bundled manifest, or of its task `RECIPE-TASK`, or path of a JSON
            file.
        tables: read the file tables, a second for CREMA-D. Without them, `files` and `hash` are incomplete.

    Raises:
        UsageError: the manifest does not exist.
        AvdataError: the manifest is invalid; the message names the field.
    """
    path = Path(manifest)
    if isinstance(manifest, Path) or path.suffix == ".json":
        if not path.is_file():
            msg = f"The manifest {path} does not exist."
            raise UsageError(msg, hint=_MISSING_HINT)
        text = path.read_bytes().decode(errors="replace")
        loaded = _parse(text, str(path), path.parent if tables else None)
        loaded._path = path
        return loaded
    name = _bundled_name(manifest)
    if name is None:
        msg = f"No bundled manifest is named {manifest!r}."
        raise UsageError(msg, hint=_MISSING_HINT)
    folder = package_files("avdata.manifests")
    text = folder.joinpath(f"{name}.json").read_text(encoding="utf-8")
    return _parse(text, f"{name}.json", Path(str(folder)) if tables else None)


def has_manifest(recipe: str) -> bool:
    """Return whether a manifest is bundled for a recipe or for the recipe of a task."""
    return _bundled_name(recipe) is not None


def read_facts(recipe: str) -> dict[str, Any]:
    """Return a bundled manifest as JSON, without reading its table of files; empty without a manifest."""
    name = _bundled_name(recipe)
    if name is None:
        return {}
    facts = json.loads(package_files("avdata.manifests").joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return dict(facts)


def _bundled_name(recipe: str) -> str | None:
    folder = package_files("avdata.manifests")
    names = (name for name in (recipe, recipe.rpartition("-")[0]) if name)
    return next((name for name in names if folder.joinpath(f"{name}.json").is_file()), None)


def _parse(text: str, name: str, folder: Path | None) -> Manifest:
    """Return a manifest, with the file tables of a folder."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors()[0]
        where = shorten(".".join(str(part) for part in detail["loc"]))
        msg = f"Invalid manifest {name}: {' '.join(filter(None, (where, detail['msg'])))}."
        raise AvdataError(msg) from error
    if folder is None:
        return manifest
    names = {source.table for source in manifest.sources if source.table}
    tables = {table: tuple(read_file_table(folder / table)) for table in sorted(names)}
    listed = [facts for table in tables.values() for facts in table]
    return manifest.model_copy(update={"files": (*manifest.files, *listed), "tables": tables})


def manifest_names() -> list[str]:
    """Return the sorted names of the bundled manifests."""
    bundled = package_files("avdata.manifests").iterdir()
    return sorted(entry.name.removesuffix(".json") for entry in bundled if entry.name.endswith(".json"))


def read_file_table(path: Path) -> list[FileEntry]:
    """Return the files listed in a `*.files.tsv.gz`.

    Raises:
        AvdataError: the file cannot be read, or a line is malformed; the message contains its number.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            next(lines, "")
            return [_read_line(line, number, path) for number, line in enumerate(lines, start=2)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        msg = f"The file table {path} cannot be read ({error})."
        raise AvdataError(msg) from error


def _read_line(line: str, number: int, path: Path) -> FileEntry:
    fields = line.rstrip("\n").split("\t")
    if not re.fullmatch(r"[^\t]+\t(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})\t[0-9]{0,18}", line.rstrip("\n")):
        msg = (
            f"Invalid {path} line {number}: expected path, checksum and bytes (or nothing) separated by tabs."
        )
        raise AvdataError(msg)
    # model_construct skips validation, which takes 0.1 s for 15,000 lines. Without `variants` it inspects the
    # signature of the default factory, which takes 0.15 s.
    size = int(fields[2]) if fields[2] else None
    return FileEntry.model_construct(path=fields[0], checksum=fields[1], bytes=size, variants={})


def load_facts(table: str, *, facts: Collection[str], keys: str) -> dict[str, dict[str, str]]:
    """Return a bundled table of facts about clips or groups as {fact: {key: value}}.

    A table is `manifests/NAME.clips.tsv` or `NAME.actors.tsv` with the columns `key`, `fact`, `value` and
    `source` (where the fact comes from), separated by tabs, after a header line, sorted.

    Args:
        table: file name.
        facts: names of the facts that the table may state; each is a key of the result.
        keys: regular expression that matches every key.

    Raises:
        AvdataError: a line is malformed, names an unknown fact or key, or repeats one; the message
            contains its number.
    """
    values: dict[str, dict[str, str]] = {fact: {} for fact in facts}
    lines = package_files("avdata.manifests").joinpath(table).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        key, fact, value, source = fields if len(fields := line.split("\t")) == 4 else ("",) * 4
        if number == 1 and fields == ["key", "fact", "value", "source"]:
            continue
        if fact not in values or not re.fullmatch(keys, key) or not source or key in values[fact]:
            known = ", ".join(facts)
            msg = f"Invalid {table} line {number}: expected a new key, a fact of {known}, value and source."
            raise AvdataError(msg)
        values[fact][key] = value
    return values


def load_labels(table: str) -> tuple[str, ...]:
    """Return the labels of a bundled table, in its order.

    A table is `manifests/NAME.labels.tsv` with the columns `label` and `clips` (number of clips as
    published), separated by a tab, after a header line.
    """
    lines = package_files("avdata.manifests").joinpath(table).read_text(encoding="utf-8").splitlines()
    return tuple(line.partition("\t")[0] for line in lines[1:])
