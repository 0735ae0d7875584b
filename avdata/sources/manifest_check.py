"""Consistency checks of manifests, without a network."""

from __future__ import annotations

import re
from collections import Counter

from avdata.errors import AvdataError, UsageError
from avdata.manifest import FileEntry, Manifest, Source, load_manifest, manifest_names
from avdata.sources.url_schemes import check_source_url, is_source_url, serves_each_file
from avdata.storage.paths import is_safe_relative_path


def check_manifests() -> dict[str, list[str]]:
    """Return the problems of each bundled manifest by name; an empty list means valid.

    >>> all(isinstance(problems, list) for problems in check_manifests().values())
    True
    """
    problems: dict[str, list[str]] = {}
    for name in manifest_names():
        try:
            manifest = load_manifest(name)
        except AvdataError as error:
            problems[name] = [error.message]
        else:
            misnamed = f"name is {manifest.name!r}, expected {name!r} as in the file name"
            problems[name] = [misnamed] * (manifest.name != name) + check_manifest(manifest)
    return problems


def check_manifest(manifest: Manifest) -> list[str]:
    """Return the problems of a manifest that validation of its fields does not detect."""
    names = Counter(source.name for source in manifest.sources)
    problems = [f"duplicate source name {name!r}" for name, count in names.items() if count > 1]
    for source in manifest.sources:
        problems += [f"source {source.name!r}: {problem}" for problem in _check_source(source, manifest)]
    for table, files in manifest.tables.items():
        problems += [f"{table}: {problem}" for problem in _check_files(files)]
    if not manifest.tables:
        problems += _check_files(manifest.files)
    return problems


def _check_source(source: Source, manifest: Manifest) -> list[str]:
    problems = [f"unsupported URL scheme in {url}" for url in source.urls if not is_source_url(url)]
    for url in source.urls:
        try:
            check_source_url(url, "the manifest")
        except UsageError as error:
            problems.append(error.message)
    if not source.urls:
        problems.append("no URL")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", source.name):
        problems.append("its name is not a valid file name")
    primary = {other.name for other in manifest.sources if other.instead_of is None}
    if source.instead_of is not None and source.instead_of not in primary:
        problems.append(f"instead_of is {source.instead_of!r}, which is not a primary source")
    if source.into and not is_safe_relative_path(source.into):
        problems.append(f"{source.into!r} is not below the dataset's folder")
    serves_all = [serves_each_file(url) for url in source.urls]
    if source.table and not source.unpack:
        if not all(serves_all):
            problems.append("a URL without {path}, but the source has a table")
        total = sum(entry.bytes or 0 for entry in manifest.tables[source.table])
        if source.bytes is not None and source.bytes != total:
            problems.append(f"bytes is {source.bytes:,}, but its files have {total:,}")
    elif any("{path}" in url for url in source.urls) and (source.unpack or not manifest.files):
        problems.append("a URL with {path}, but the source has no table")
    return problems


def _check_files(files: tuple[FileEntry, ...]) -> list[str]:
    paths = [entry.path for entry in files]
    problems = [
        f"{path!r} is not below the dataset's folder" for path in paths if not is_safe_relative_path(path)
    ]
    folded = Counter(path.casefold() for path in paths)
    problems += [
        f"{path!r} is a duplicate, or differs from another path only by case"
        for path in paths
        if folded[path.casefold()] > 1
    ]
    if paths != sorted(paths):
        problems.append("the files are not sorted by path")
    return problems
