"""Parse the name of what to stream: a split, a slice of one, or several, as in `train[:10%]+val`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avdata.errors import UsageError, did_you_mean

ALIASES = {"validation": "val"}

_BOUND = r"\s*(-?\d+(?:\.\d+(?=%))?%?)?\s*"
_PART = re.compile(rf"\s*(?P<name>[^\s\[\]+]+)\s*(?:\[{_BOUND}:{_BOUND}\]\s*)?")

_HINT = "For example: train, train+val, train[:10%], train[100:200] or train[-50:]"


@dataclass(frozen=True, slots=True)
class SplitPart:
    """Consecutive samples of a split.

    Attributes:
        name: Name of the split.
        bounds: Start and stop of a slice as text, such as `""`, `"100"` or `"-10%"`; None for all samples.
    """

    name: str
    bounds: tuple[str, str] | None = None

    def __str__(self) -> str:
        return self.name if self.bounds is None else f"{self.name}[{':'.join(self.bounds)}]"

    def rows(self, length: int) -> range:
        """Return the sample numbers of the part in a split of `length` samples, as Python slices them.

        Percentages are rounded to the nearest sample, so `train[:10%]` and `train[10%:]` have none in common.

        >>> SplitPart("train", ("-10%", "")).rows(200)
        range(180, 200)
        """
        start, stop = (_position(text, length) for text in self.bounds or ("", ""))
        return range(length)[start:stop]


def parse_split(text: str, lengths: Mapping[str, int], dataset: str) -> list[SplitPart]:
    """Return the parts of a split expression.

    >>> [str(part) for part in parse_split("validation + train[:10%]", {"train": 50, "val": 5}, "out")]
    ['val', 'train[:10%]']

    Args:
        text: Names of splits, each with an optional slice, joined by `+`.
        lengths: Number of samples of each split of the dataset.
        dataset: Name of the dataset, for errors.

    Raises:
        UsageError: Unknown split, invalid slice, or parts that overlap.
    """
    if not isinstance(text, str):
        msg = f"Unknown split {text!r} in {dataset}: must be a text."
        raise UsageError(msg, hint=_HINT)
    parts = []
    for piece in text.split("+"):
        match = _PART.fullmatch(piece)
        if match is None:
            msg = f"Invalid split {text!r}: {piece.strip()!r} is not a split or a slice of one."
            raise UsageError(msg, hint=_HINT)
        name, bounds = match["name"], (match[2] or "", match[3] or "")
        name = name if name in lengths else ALIASES.get(name, name)
        if name not in lengths:
            msg = f"Unknown split {match['name']!r} in {dataset}."
            raise UsageError(msg, hint=did_you_mean(name, list(lengths)))
        parts.append(SplitPart(name, bounds if "[" in piece else None))
    _check_overlaps(text, parts, lengths)
    return parts


def _check_overlaps(text: str, parts: Sequence[SplitPart], lengths: Mapping[str, int]) -> None:
    ends: dict[str, int] = {}
    for part, rows in sorted(
        ((part, part.rows(lengths[part.name])) for part in parts), key=lambda pair: pair[1].start
    ):
        if rows and rows.start < ends.get(part.name, 0):
            msg = f"Split {text!r} selects samples of {part.name} twice."
            raise UsageError(msg, hint="Use repeat(n) or weights to read samples several times")
        ends[part.name] = max(ends.get(part.name, 0), rows.stop)


def _position(text: str, length: int) -> int | None:
    if text.endswith("%"):
        return round(length * float(text[:-1]) / 100)
    return int(text) if text else None
