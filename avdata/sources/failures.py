"""Files that could not be downloaded: the error, the list on disk, and the command that fetches only them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from avdata.errors import SourceError, UsageError
from avdata.sources.fetcher import FailedFile
from avdata.sources.source_dir import STATE_DIR
from avdata.storage.atomic import write_errors

_EXAMPLES = 3

_CAUSES = 3


class IncompleteError(SourceError):
    """Some files could not be downloaded; all others are in place.

    Attributes:
        sources: names of the sources of the failed files.
        files: reason of each failed file, by path.
    """

    def __init__(
        self, message: str, *, hint: str, sources: Collection[str], files: Mapping[str, str]
    ) -> None:
        super().__init__(message, hint=hint)
        self.sources = frozenset(sources)
        self.files = dict(files)


def incomplete_error(
    name: str, failures: Sequence[FailedFile], count: int, *, log: Path, command: str
) -> IncompleteError:
    """Return the error of failed files: causes first, then how many, examples and what to do.

    Args:
        name: name of the dataset.
        failures: failed files.
        count: number of files that were requested.
        log: log of failed attempts.
        command: command that fetches only the failed files.
    """
    causes = Counter(failure.cause for failure in failures).most_common()
    texts = [f"{cause} (files: {number:,})" for cause, number in causes[:_CAUSES]]
    if len(causes) == 1:
        texts = [failures[0].message if len(failures) == 1 else failures[0].cause]
    if len(causes) > _CAUSES:
        texts.append(f"{len(causes) - _CAUSES:,} further causes")
    cause = "; ".join(texts)
    examples = ", ".join(failure.request.path for failure in failures[:_EXAMPLES])
    more = " and others" if len(failures) > _EXAMPLES else ""
    files = "file" if count == 1 else "files"
    msg = (
        f"{cause[:1].upper()}{cause[1:]}. {len(failures):,} of {count:,} {files} of {name} could not be"
        f" downloaded: {examples}{more}."
    )
    hint = next((f"{failure.hint} " for failure in failures if failure.hint), "")
    hint += f"All other files are kept. Fetch only the missing ones with: {command}\nFailed attempts: {log}"
    return IncompleteError(
        msg,
        hint=hint,
        sources={failure.request.source for failure in failures},
        files={failure.request.path: failure.reason for failure in failures},
    )


def _list_path(root: Path) -> Path:
    return root / STATE_DIR / "failed.json"


def write_failed(root: Path, files: Mapping[str, str]) -> None:
    """Store the failed files of a download with their reasons; remove the list if there are none."""
    path = _list_path(root)
    with write_errors(path):
        if files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(files, indent=1), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def read_failed(root: Path) -> frozenset[str]:
    """Return the paths of the files that failed in the last download.

    Raises:
        UsageError: no file failed.
    """
    try:
        return frozenset(json.loads(_list_path(root).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        msg = f"No failed files are listed in {_list_path(root)}."
        raise UsageError(msg, hint="Omit --failed to download all missing files.") from None
