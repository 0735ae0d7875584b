"""Selection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from avdata.config.schema import SelectConfig
from avdata.errors import AvdataError, QuarantineReason, SampleFlag
from avdata.recipe import Clip


@dataclass(frozen=True, slots=True)
class QuarantinedClip:
    """A clip left out: why, what exactly, and which of its media is good all the same."""

    key: str
    reason: QuarantineReason
    detail: str
    kept: Literal["", "audio", "video"] = ""


def select_clips(clips: Sequence[Clip], select: SelectConfig) -> tuple[list[Clip], list[QuarantinedClip]]:
    """The clips to prepare, flagged where groups leak, and those out by the recipe's word or for leaking."""
    out = [
        QuarantinedClip(clip.key, QuarantineReason.KNOWN_BAD, clip.excluded)
        for clip in clips
        if clip.excluded
    ]
    chosen = _flag_leaks([clip for clip in clips if not clip.excluded])
    if select.group_leakage == "drop-train":
        held_out = {clip.group for clip in chosen if clip.split != "train"}
        leaking = [clip for clip in chosen if clip.split == "train" and clip.group in held_out]
        out += [
            QuarantinedClip(clip.key, QuarantineReason.LEAK, f"group {clip.group} is also held out")
            for clip in leaking
        ]
        gone = {clip.key for clip in leaking}
        chosen = [clip for clip in chosen if clip.key not in gone]
    return (limit_clips(chosen, select.limit, select.seed) if select.limit else chosen), out


def _flag_leaks(clips: Sequence[Clip]) -> list[Clip]:
    splits: dict[str, set[str]] = {}
    for clip in clips:
        splits.setdefault(clip.group, set()).add(clip.split)
    return [
        replace(clip, flags=(*clip.flags, SampleFlag.LEAK)) if len(splits[clip.group]) > 1 else clip
        for clip in clips
    ]


def limit_clips(clips: Sequence[Clip], limit: int, seed: int) -> list[Clip]:
    """`limit` clips spread evenly over splits and labels, the same ones for the same seed, in their order."""
    shelves: dict[tuple[str, str], list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: hash_order(clip.key, seed)):
        shelves.setdefault((clip.label, clip.split), []).append(clip)
    rounds = [(depth, shelf) for shelf, held in shelves.items() for depth in range(len(held))]
    taken = {shelves[shelf][depth].key for depth, shelf in sorted(rounds)[:limit]}
    return [clip for clip in clips if clip.key in taken]


def hash_order(key: str, seed: int) -> str:
    """A sort key that shuffles clips the same way everywhere."""
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


MAX_KEY_LENGTH = 89
"""Characters of a key, so that a member's name has room in a tar's header."""


def check_clips(clips: Iterable[Clip], labels: Sequence[str], splits: Sequence[str]) -> None:
    """See that keys can name members and are unique, and that labels and splits are known.

    Raises:
        AvdataError: the recipe yields something else.
    """
    seen: set[str] = set()
    for clip in clips:
        plain = clip.key.replace("-", "").replace("_", "")
        named = plain.isascii() and plain.isalnum() and len(clip.key) <= MAX_KEY_LENGTH
        if not named or clip.key.startswith("__") or clip.key in seen:
            odd = f"which is not made of at most {MAX_KEY_LENGTH} of A-Z a-z 0-9 _ -, or starts with __"
            what = "twice" if clip.key in seen else odd
            msg = f"the recipe yields the key {clip.key!r} {what}"
            raise AvdataError(msg, hint="a recipe's keys must be unique and fit for file names")
        seen.add(clip.key)
        for what, value, known in (("label", clip.label, labels), ("split", clip.split, splits)):
            if value not in known:
                msg = f"the recipe yields the clip {clip.key} with the {what} {value!r}"
                raise AvdataError(msg, hint=f"{what}s: {', '.join(known)}")
