"""Selection of clips, and checks of the clips that a recipe returns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from avdata.config.schema import SelectConfig
from avdata.errors import AvdataError, QuarantineReason, SampleFlag
from avdata.recipe import Clip


@dataclass(frozen=True, slots=True)
class QuarantinedClip:
    """Clip that is not prepared.

    Attributes:
        key: the clip's key.
        reason: code of the reason.
        detail: what failed, and in which file.
        kept: the stream that is usable nevertheless; empty if there is none.
    """

    key: str
    reason: QuarantineReason
    detail: str
    kept: Literal["", "audio", "video"] = ""


def select_clips(clips: Sequence[Clip], select: SelectConfig) -> tuple[list[Clip], list[QuarantinedClip]]:
    """Return the clips to prepare, and those excluded by the recipe or for group leakage.

    Clips whose group is in more than one split are flagged.
    """
    excluded = [
        QuarantinedClip(clip.key, clip.excluded_reason, clip.excluded) for clip in clips if clip.excluded
    ]
    chosen = _flag_leaks([clip for clip in clips if not clip.excluded])
    if select.group_leakage == "drop-train":
        held_out = {clip.group for clip in chosen if clip.split != "train"}
        leaking = [clip for clip in chosen if clip.split == "train" and clip.group in held_out]
        excluded += [
            QuarantinedClip(clip.key, QuarantineReason.LEAK, f"group {clip.group} is also held out")
            for clip in leaking
        ]
        dropped = {clip.key for clip in leaking}
        chosen = [clip for clip in chosen if clip.key not in dropped]
    return (limit_clips(chosen, select.limit, select.seed) if select.limit else chosen), excluded


def _flag_leaks(clips: Sequence[Clip]) -> list[Clip]:
    splits: dict[str, set[str]] = {}
    for clip in clips:
        splits.setdefault(clip.group, set()).add(clip.split)
    return [
        replace(clip, flags=(*clip.flags, SampleFlag.LEAK)) if len(splits[clip.group]) > 1 else clip
        for clip in clips
    ]


def limit_clips(clips: Sequence[Clip], limit: int, seed: int) -> list[Clip]:
    """Return `limit` clips in their order, in the proportions of splits, and of the labels of each split.

    Each split keeps a clip if the limit allows. Equal seeds select the same clips.
    """
    strata: dict[str, dict[str, list[Clip]]] = {}
    for clip in sorted(clips, key=lambda clip: hash_order(clip.key, seed)):
        strata.setdefault(clip.split, {}).setdefault(clip.label, []).append(clip)
    sizes = {split: sum(map(len, labels.values())) for split, labels in strata.items()}
    keys: set[str] = set()
    for split, count in _apportion(limit, sizes, least=1).items():
        labels = strata[split]
        counts = _apportion(count, {label: len(members) for label, members in labels.items()})
        keys.update(clip.key for label, number in counts.items() for clip in labels[label][:number])
    return [clip for clip in clips if clip.key in keys]


def _apportion(total: int, sizes: Mapping[str, int], *, least: int = 0) -> dict[str, int]:
    """Return shares of `total` in proportion to the sizes by largest remainders; none exceeds its size.

    >>> _apportion(10, {"train": 80, "val": 1, "test": 19}, least=1)
    {'train': 7, 'val': 1, 'test': 2}

    Args:
        total: sum of the shares, at most the sum of the sizes.
        sizes: sizes by name, at least 1.
        least: smallest share, as far as `total` allows.
    """
    whole = sum(sizes.values())
    total = min(total, whole)
    shares = {name: total * size // whole for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(total * sizes[name] % whole))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    if total >= least * len(sizes):
        for name in [name for name, share in shares.items() if share < least]:
            shares[max(shares, key=lambda name: shares[name])] -= least - shares[name]
            shares[name] = least
    return shares


def hash_order(key: str, seed: int) -> str:
    """Return a sort key that shuffles clips, equal on all platforms."""
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _check_media(clip: Clip, first: Clip) -> None:
    if clip.video is None and clip.audio is None:
        msg = f"Clip {clip.key} has neither video nor audio."
        raise AvdataError(msg, hint="Set Clip.video, or Clip.audio in a dataset of audio.")
    if (clip.video is None) != (first.video is None):
        msg = f"Clip {clip.key} has {'no' if clip.video is None else 'a'} video, unlike {first.key}."
        raise AvdataError(msg, hint="Set Clip.video for all clips, or for none in a dataset of audio.")


MAX_KEY_LENGTH = 89
"""Maximum length of a key. A member's name must fit into a tar header."""


def check_clips(clips: Iterable[Clip], labels: Sequence[str], splits: Sequence[str]) -> None:
    """Check that keys are valid and unique, labels and splits are known, and all or no clips have a video.

    The label and split of an excluded clip may be unknown.

    Raises:
        AvdataError: a clip is invalid.
    """
    seen: set[str] = set()
    clips = list(clips)
    for clip in clips:
        _check_media(clip, clips[0])
        plain = clip.key.replace("-", "").replace("_", "")
        is_valid = plain.isascii() and plain.isalnum() and len(clip.key) <= MAX_KEY_LENGTH
        if not is_valid or clip.key.startswith("__") or clip.key in seen:
            problem = "Duplicate" if clip.key in seen else "Invalid"
            msg = f"{problem} clip key {clip.key!r} of the recipe."
            hint = (
                f"Use unique keys of at most {MAX_KEY_LENGTH} characters A-Z a-z 0-9 _ -"
                " that do not start with __."
            )
            raise AvdataError(msg, hint=hint)
        seen.add(clip.key)
        if clip.excluded:
            continue
        for what, value, known in (("label", clip.label, labels), ("split", clip.split, splits)):
            if value not in known:
                msg = f"Unknown {what} {value!r} of the clip {clip.key}."
                raise AvdataError(msg, hint=f"Known {what}s: {', '.join(known)}.")
