"""Comparison of a published list of clips with a prepared dataset.

Lists have a clip per line, in fields separated by commas, tabs, `&` or spaces: `STEM,LABEL` (OGM-GE),
`Label&ID&...` (AVE), `NAME ... NUMBER` (Kinetics-Sounds), `ID,SECOND,label,split` (VGGSound).
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from avdata.errors import QuarantineReason, UsageError
from avdata.shards.dataset_files import open_dataset_files
from avdata.shards.reader import read_index, read_quarantine

NOT_IN_DATASET = "not_in_dataset"
"""Reason of a listed clip that is neither in the index nor in quarantine."""

_NOT_IN_DATASET = "not among the clips of the prepared source files, or left out by select.limit or the split"

MAX_LIST_BYTES = 256 * 1024 * 1024

_SEPARATORS = (",", "\t", "&", " ")

_MEDIA_SUFFIX = re.compile(r"\.(mp4|flv|avi|mkv|webm|mov|wav|flac|mp3|jpg|npy|pt|pkl)$", re.IGNORECASE)

_PARSED_LINES = 1000
"""Lines from which the column of the names is found."""


@dataclass(frozen=True, slots=True)
class MissingClip:
    """Listed clip that is not in the dataset.

    Attributes:
        key: name in the list.
        reason: code of the quarantine, or `not_in_dataset`.
        detail: what was found, in words.
    """

    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SplitMatch:
    """Result of `match`.

    Attributes:
        listed: number of different clips in the list.
        duplicates: number of lines that repeat a clip.
        found: number of listed clips in the dataset, by split.
        missing: listed clips that are not in the dataset, in the order of the list.
        unlisted: number of clips of the dataset that are not in the list, by split.
    """

    listed: int
    duplicates: int
    found: Mapping[str, int]
    missing: tuple[MissingClip, ...]
    unlisted: Mapping[str, int]

    @property
    def missing_by_reason(self) -> dict[str, int]:
        """Number of missing clips by reason."""
        return dict(sorted(Counter(clip.reason for clip in self.missing).items()))


def match(dataset: str | Path, split_list: str | Path) -> SplitMatch:
    """Return which clips of a published list a prepared dataset has, and which it lacks and why.

    Args:
        dataset: folder or URL of the prepared dataset.
        split_list: the list; see the module. The column of the names is the one with the most known keys.

    Raises:
        UsageError: the list cannot be read, or names no clip of the dataset.
        AvdataError: the dataset cannot be read.
    """
    files, path = open_dataset_files(dataset, "index.parquet", "quarantine.parquet"), Path(split_list)
    splits, root = list(files.info["splits"]), files.root
    index = read_index(root, ["key", "split"])
    split_of = dict(zip(index["key"].to_pylist(), index["split"].to_pylist(), strict=True))
    quarantine = {row["key"]: row for row in read_quarantine(root).to_pylist()}
    rows = _read_rows(path)
    name_of = _find_column(rows, split_of.keys() | quarantine.keys())
    names = [name for row in rows if (name := name_of(row))] if name_of else []
    if not names:
        example = next(iter(split_of), "none")
        msg = (
            f"{path} names no clip of {files.name}: its first line is {_shorten(rows)}, a key is {example!r}."
        )
        raise UsageError(msg, hint="Pass a list with a clip per line, such as: 1001_DFA_ANG_XX,ANG")
    listed = dict.fromkeys(names)
    missing = []
    for name in listed:
        if name in quarantine and name not in split_of:
            reason, detail = quarantine[name]["reason"], quarantine[name]["detail"]
            missing.append(MissingClip(name, reason, detail or QuarantineReason(reason).description))
        elif name not in split_of:
            missing.append(MissingClip(name, NOT_IN_DATASET, _NOT_IN_DATASET))
    found = Counter(split_of[name] for name in listed if name in split_of)
    unlisted = Counter(split for key, split in split_of.items() if key not in listed)
    return SplitMatch(
        listed=len(listed),
        duplicates=len(names) - len(listed),
        found={split: found[split] for split in splits},
        missing=tuple(missing),
        unlisted={split: unlisted[split] for split in splits},
    )


Row = Sequence[str]


def _read_rows(path: Path) -> list[Row]:
    """Return the fields of each line that is not empty."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            msg = f"{path} is no list of clips: it is larger than {MAX_LIST_BYTES:,} bytes."
            raise UsageError(msg)
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})."
        raise UsageError(msg, hint="Pass the file of a published list.") from error
    except UnicodeDecodeError as error:
        msg = f"{path} is no text in UTF-8."
        raise UsageError(msg, hint="Pass the file of a published list.") from error
    lines = [line for line in text.splitlines() if line.strip()]
    head = lines[:_PARSED_LINES]
    separator = next((mark for mark in _SEPARATORS if any(mark in line for line in head)), ",")
    return [[field.strip() for field in row] for row in csv.reader(lines, delimiter=separator)]


def _find_column(rows: Sequence[Row], keys: set[str]) -> Callable[[Row], str] | None:
    """Return the function from a row to its clip that finds the most keys; None if none finds one."""
    head = list(islice(rows, _PARSED_LINES)) if _has_key(rows[:_PARSED_LINES], keys) else rows
    width = max(map(len, head), default=0)
    readers: list[Callable[[Row], str]] = [_joined, *map(_column, range(width))]
    hits = [sum(reader(row) in keys for row in head) for reader in readers]
    best = max(range(len(readers)), key=hits.__getitem__)
    return readers[best] if hits[best] else None


def _has_key(rows: Sequence[Row], keys: set[str]) -> bool:
    return any(_stem(field) in keys for row in rows for field in row) or any(
        _joined(row) in keys for row in rows
    )


def _column(number: int) -> Callable[[Row], str]:
    return lambda row: _stem(row[number]) if number < len(row) else ""


def _joined(row: Row) -> str:
    """Return the name of a clip of VGGSound from its video and second: `ID_000030`."""
    return f"{row[0]}_{int(row[1]):06d}" if len(row) > 1 and re.fullmatch(r"\d{1,6}", row[1]) else ""


def _stem(field: str) -> str:
    """Return a field without folders and the suffix of a media file."""
    return _MEDIA_SUFFIX.sub("", PurePosixPath(field).name)


def _shorten(rows: Sequence[Row]) -> str:
    return repr(",".join(rows[0])[:80]) if rows else "missing"
