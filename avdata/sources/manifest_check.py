"""Manifest check."""

from __future__ import annotations

import re
from collections import Counter

from avdata.errors import AvdataError
from avdata.manifest import FileEntry, Manifest, Source, load_manifest, manifest_names
from avdata.storage.paths import is_safe_relative_path


def check_manifests() -> dict[str, list[str]]:
    """What is wrong with each bundled manifest, by name; an empty list where nothing is. Works offline.

    >>> all(isinstance(problems, list) for problems in check_manifests().values())
    True
    """
    found: dict[str, list[str]] = {}
    for name in manifest_names():
        try:
            manifest = load_manifest(name)
        except AvdataError as error:
            found[name] = [error.message]
        else:
            misnamed = f"its name is {manifest.name!r}, and its file's {name!r}"
            found[name] = [misnamed] * (manifest.name != name) + check_manifest(manifest)
    return found


def check_manifest(manifest: Manifest) -> list[str]:
    """What is wrong with a manifest, a sentence each: what its types do not catch."""
    names = Counter(source.name for source in manifest.sources)
    problems = [f"two sources are named {name!r}" for name, count in names.items() if count > 1]
    for source in manifest.sources:
        problems += [f"source {source.name!r}: {problem}" for problem in _check_source(source, manifest)]
    for table, files in manifest.tables.items():
        problems += [f"{table}: {problem}" for problem in _check_files(files)]
    if not manifest.tables:
        problems += _check_files(manifest.files)
    return problems


def _check_source(source: Source, manifest: Manifest) -> list[str]:
    from avdata.sources.url_schemes import is_source_url, serves_each_file  # noqa: PLC0415  # the HTTP library loads only where it is needed

    problems = [f"{url} has no scheme that can be fetched" for url in source.urls if not is_source_url(url)]
    if not source.urls:
        problems.append("it has no URL")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", source.name):
        problems.append("its name cannot be a file's")
    primary = {one.name for one in manifest.sources if one.instead_of is None}
    if source.instead_of is not None and source.instead_of not in primary:
        problems.append(f"it stands in for {source.instead_of!r}, which is no source of its own")
    if source.into and not is_safe_relative_path(source.into):
        problems.append(f"{source.into!r} is not below the dataset's folder")
    each = [serves_each_file(url) for url in source.urls]
    if source.table and not source.unpack:
        if not all(each):
            problems.append("a URL has no {path}, although the source has a table")
        total = sum(facts.bytes or 0 for facts in manifest.tables[source.table])
        if source.bytes is not None and source.bytes != total:
            problems.append(f"its files have {total:,} bytes together, and it says {source.bytes:,}")
    elif any("{path}" in url for url in source.urls) and (source.unpack or not manifest.files):
        problems.append("a URL has {path}, and there is no table to fill it from")
    return problems


def _check_files(files: tuple[FileEntry, ...]) -> list[str]:
    paths = [facts.path for facts in files]
    problems = [
        f"{path!r} is not below the dataset's folder" for path in paths if not is_safe_relative_path(path)
    ]
    folded = Counter(path.casefold() for path in paths)
    problems += [
        f"{path!r} is there twice, or differs from another path by case only"
        for path in paths
        if folded[path.casefold()] > 1
    ]
    if paths != sorted(paths):
        problems.append("the files are not sorted by path")
    return problems
