"""The facts about a dataset's sources: URLs, checksums, bytes, license, citation, expected counts.

A manifest is `manifests/NAME.json`; a source that lists its files has them in `NAME.files.tsv.gz`, one line a
file: `path`, `checksum` as `algorithm:hex`, `bytes`, separated by tabs, after a header line, sorted by path.
A mock dataset carries its own `manifest.json` with the list inline.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Collection
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from avdata.errors import AvdataError, UsageError

Checksum = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]


class _ManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_ManifestModel):
    """One file: its path below the dataset's root, its checksum and, where it is known, its size in bytes."""

    path: str
    checksum: Checksum
    bytes: int | None = Field(None, ge=0)


class License(_ManifestModel):
    """What the data's owner allows."""

    id: str = Field(description="as the Hugging Face Hub spells it: odbl, cc-by-nc-3.0, other, unknown")
    name: str
    link: str | None = None
    publish: Literal["yes", "no"] = Field(description="may prepared shards be published?")
    note: str = Field(description="a sentence for people: conditions, or why not")


class Source(_ManifestModel):
    """Something that is downloaded."""

    name: str
    urls: tuple[str, ...] = Field(
        description="in order of preference; schemes https, lfs+https, gdrive, kaggle, hf"
    )
    checksum: Checksum | None = None
    bytes: int | None = None
    unpack: Literal["zip", "tar.gz"] | None = None
    into: str = Field("", description="folder or file below the dataset's root")
    table: str | None = Field(
        None, description="file list beside the manifest; {path} in the URLs stands for each"
    )
    splits: tuple[str, ...] = Field((), description="needed only for these ways of splitting; empty: always")
    instead_of: str | None = Field(
        None, description="the source that this one, with others of the kind, stands in for when it fails"
    )


class Manifest(_ManifestModel):
    """Facts about one dataset."""

    format: Literal[1] = 1
    name: str
    title: str
    homepage: str
    commit: str | None = None
    license: License
    citation: str
    ethics: str | None = Field(
        None, description="what a user owes the people who can be recognized, where there are any"
    )
    expected: dict[str, int] = Field(
        default_factory=dict, description="counts by name: clips, train, test, …"
    )
    sources: tuple[Source, ...] = ()
    files: tuple[FileEntry, ...] = ()
    mock: bool = Field(False, description="the files are generated and stand for the dataset")
    tables: dict[str, tuple[FileEntry, ...]] = Field(
        default_factory=dict, exclude=True, description="the sources' file lists by name, read in on loading"
    )

    @property
    def bytes(self) -> int | None:
        """Size of all sources together, where known."""
        known = [source.bytes for source in self.sources if source.bytes is not None]
        return sum(known) if known else None


def load_manifest(manifest: str | Path) -> Manifest:
    """The bundled manifest of a recipe's name, or the one at a path; file tables read in.

    Raises:
        UsageError: there is no such manifest.
        AvdataError: it is not valid; the message names the field.
    """
    path = Path(manifest)
    if isinstance(manifest, Path) or path.suffix == ".json":
        if not path.is_file():
            msg = f"there is no manifest {path}"
            raise UsageError(msg, hint="give the path of one with --manifest, or --checksums off")
        return _parse(path.read_bytes().decode(errors="replace"), str(path), path.parent)
    folder = package_files("avdata.manifests")
    resource = folder.joinpath(f"{manifest}.json")
    if not resource.is_file():
        msg = f"there is no bundled manifest {str(manifest)!r}"
        raise UsageError(msg, hint="give a path to one with --manifest, or --checksums off")
    return _parse(resource.read_text(encoding="utf-8"), f"{manifest}.json", Path(str(folder)))


def _parse(text: str, name: str, folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate(json.loads(text))
    except (json.JSONDecodeError, ValidationError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in detail["loc"])
        msg = f"the manifest {name} is not valid: {where} {detail['msg']}"
        raise AvdataError(msg) from error
    names = {source.table for source in manifest.sources if source.table}
    tables = {table: tuple(read_file_table(folder / table)) for table in sorted(names)}
    listed = [facts for table in tables.values() for facts in table]
    return manifest.model_copy(update={"files": (*manifest.files, *listed), "tables": tables})


def manifest_names() -> list[str]:
    """Names of the bundled manifests, sorted."""
    bundled = package_files("avdata.manifests").iterdir()
    return sorted(entry.name.removesuffix(".json") for entry in bundled if entry.name.endswith(".json"))


def read_file_table(path: Path) -> list[FileEntry]:
    """The files of a `*.files.tsv.gz`.

    Raises:
        AvdataError: a line is malformed; the message gives its number.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        next(lines)
        return [_read_line(line, number, path) for number, line in enumerate(lines, start=2)]


def _read_line(line: str, number: int, path: Path) -> FileEntry:
    fields = line.rstrip("\n").split("\t")
    if not re.fullmatch(r"[^\t]+\t(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})\t\d*", line.rstrip("\n")):
        msg = f"{path} line {number} is not path, checksum and bytes (or nothing) separated by tabs"
        raise AvdataError(msg)
    # model_construct: the line was checked above, and validating 15,000 models takes a tenth of a second.
    size = int(fields[2]) if fields[2] else None
    return FileEntry.model_construct(path=fields[0], checksum=fields[1], bytes=size)


def load_facts(table: str, *, facts: Collection[str], keys: str) -> dict[str, dict[str, str]]:
    """Return a bundled table of facts about clips or groups: values by key, by fact.

    A table is `manifests/NAME.clips.tsv` or `NAME.actors.tsv` with the columns `key`, `fact`, `value` and
    `source` (where the fact comes from), separated by tabs, after a header line, sorted.

    Args:
        table: file name.
        facts: names of the facts that the table may state; each is a key of the result.
        keys: regular expression that matches every key.

    Raises:
        AvdataError: a line is malformed, names an unknown fact or key, or repeats one; the message gives its
            number.
    """
    found: dict[str, dict[str, str]] = {fact: {} for fact in facts}
    lines = package_files("avdata.manifests").joinpath(table).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        key, fact, value, source = fields if len(fields := line.split("\t")) == 4 else ("",) * 4
        if number == 1 and fields == ["key", "fact", "value", "source"]:
            continue
        if fact not in found or not re.fullmatch(keys, key) or not source or key in found[fact]:
            msg = f"{table} line {number}: expected a new key, a fact of {', '.join(facts)}, value and source"
            raise AvdataError(msg)
        found[fact][key] = value
    return found
