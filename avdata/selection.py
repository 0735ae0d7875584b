"""Selection of clips, and checks of the clips that a recipe returns."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from avdata.clips import ClipList
from avdata.config.schema import SelectConfig
from avdata.errors import AvdataError, QuarantineReason, SampleFlag
from avdata.recipe import Clip
from avdata.recipe_checks import is_text
from avdata.storage.text_digests import Digests, TextDigests, contains, digest_texts, shared_digests


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


def select_clips(clips: Iterable[Clip], select: SelectConfig) -> tuple[ClipList, list[QuarantinedClip]]:
    """Return the clips to prepare, and those excluded by the recipe or for group leakage.

    Clips whose group is in more than one split are flagged. A part is selected last, so that the parts are
    disjoint and their union is what is selected without `select.part`.
    """
    clips = ClipList.of(clips)
    if select.part is not None:
        number, count = map(int, select.part.split("/"))
        chosen, excluded = select_clips(clips, select.model_copy(update={"part": None}))
        keys = {clip.key for clip in excluded}
        groups = {clip.key: clip.group for clip in clips if clip.key in keys}
        return (
            _filter(chosen, lambda clip: part_of(clip.group, count) == number),
            [clip for clip in excluded if part_of(groups[clip.key], count) == number],
        )
    excluded, kept_numbers = list[QuarantinedClip](), list[int]()
    for number, clip in enumerate(clips):
        if clip.excluded:
            excluded.append(QuarantinedClip(clip.key, clip.excluded_reason, clip.excluded))
        else:
            kept_numbers.append(number)
    chosen = _flag_leaks(clips.take(kept_numbers))
    if select.group_leakage == "drop-train":
        leaking = [clip for clip in chosen if clip.split == "train" and SampleFlag.LEAK in clip.flags]
        excluded += [
            QuarantinedClip(clip.key, QuarantineReason.LEAK, f"group {clip.group} is also held out")
            for clip in leaking
        ]
        dropped = {clip.key for clip in leaking}
        chosen = _filter(chosen, lambda clip: clip.key not in dropped)
    if select.limit:
        kept = _limited_keys(chosen, select.limit, select.seed)
        chosen = _filter(chosen, lambda clip: clip.key in kept)
    return chosen, excluded


def _filter(clips: ClipList, is_kept: Callable[[Clip], bool]) -> ClipList:
    return clips.take([number for number, clip in enumerate(clips) if is_kept(clip)])


def _flag_leaks(clips: ClipList) -> ClipList:
    groups: defaultdict[str, TextDigests] = defaultdict(TextDigests)
    for clip in clips:
        groups[clip.split].add([clip.group])
    shared = shared_digests(list(groups.values()))
    if not len(shared):
        return clips
    flagged = clips.take(range(len(clips)))
    for number, clip in enumerate(clips):
        if contains(shared, digest_texts([clip.group]))[0]:
            flagged.replace(number, replace(clip, flags=(*clip.flags, SampleFlag.LEAK)))
    return flagged


def limit_clips(clips: Iterable[Clip], limit: int, seed: int) -> list[Clip]:
    """Return `limit` clips in their order, in the proportions of splits, and of the labels of each split.

    Each split keeps a clip if the limit allows. Equal seeds select the same clips.
    """
    keys = _limited_keys(clips, limit, seed)
    return [clip for clip in clips if clip.key in keys]


def _limited_keys(clips: Iterable[Clip], limit: int, seed: int) -> set[str]:
    strata: dict[str, dict[str, list[str]]] = {}
    order = sorted((hash_order(clip.key, seed), clip.key, clip.split, clip.label) for clip in clips)
    for _, key, split, label in order:
        strata.setdefault(split, {}).setdefault(label, []).append(key)
    sizes = {split: sum(map(len, labels.values())) for split, labels in strata.items()}
    keys: set[str] = set()
    for split, count in _apportion(limit, sizes, least=1).items():
        labels = strata[split]
        counts = _apportion(count, {label: len(members) for label, members in labels.items()})
        keys.update(key for label, number in counts.items() for key in labels[label][:number])
    return keys


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


def part_of(group: str, count: int) -> int:
    """Return the part that a group belongs to, 1 … `count`: a stable hash, equal on all platforms.

    >>> part_of("1001", 4), part_of("1003", 4)
    (4, 1)
    """
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) % count + 1


def hash_order(key: str, seed: int) -> str:
    """Return a sort key that shuffles clips, equal on all platforms."""
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


MAX_KEY_LENGTH = 89
"""Maximum length of a key. A member's name must fit into a tar header."""

_KEY = re.compile(rf"(?!__)(?=.*[A-Za-z0-9])[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}")


def check_clips(clips: Iterable[Clip], labels: Sequence[str], splits: Sequence[str]) -> None:
    """Check the clips of a recipe: every field has its type, keys are unique, labels and splits are known.

    All or no clips have a video. The label and split of an excluded clip may be unknown.

    Raises:
        AvdataError: a clip is invalid; the message names the clip and the field.
    """
    keys, first = TextDigests(), None
    clips = clips if isinstance(clips, Sequence) else list(clips)
    for clip in clips:
        _check_key(clip.key)
        keys.add([clip.key.casefold()])
        _check_fields(clip)
        first = first or clip
        _check_media(clip, first)
        if clip.excluded:
            continue
        for what, value, known in (("label", clip.label, labels), ("split", clip.split, splits)):
            if value not in known:
                msg = f"Unknown {what} {value!r} of the clip {clip.key}."
                raise AvdataError(msg, hint=f"Known {what}s: {', '.join(known)}.")
    _check_unique(clips, keys.repeated())


_KEY_HINT = (
    f"Use unique keys of at most {MAX_KEY_LENGTH} characters A-Z a-z 0-9 _ - that do not start with __."
)


def _check_key(key: object) -> None:
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        msg = f"Invalid clip key {str(key)[:200]!a} of the recipe."
        raise AvdataError(msg, hint=_KEY_HINT)


def _check_unique(clips: Iterable[Clip], repeated: Digests) -> None:
    """Check that no two keys are equal or differ only by case: some file systems ignore it."""
    if not len(repeated):
        return
    earlier: dict[str, str] = {}
    for clip in clips:
        name = clip.key.casefold()
        if name in earlier:
            other = earlier[name]
            case = "" if other == clip.key else f": it differs from {other!r} only by case"
            msg = f"Duplicate clip key {clip.key!r} of the recipe{case}."
            raise AvdataError(msg, hint=_KEY_HINT)
        if contains(repeated, digest_texts([name]))[0]:
            earlier[name] = clip.key


def _check_fields(clip: Clip) -> None:
    """Check types and values of a clip's fields, except key, label and split."""
    for name in ("label", "group", "split"):
        value = getattr(clip, name)
        if not is_text(value) or not (value or clip.excluded):
            raise _invalid_field(clip, name, value, "text that is not empty")
    for name in ("video", "audio"):
        value = getattr(clip, name)
        if not isinstance(value, Path | None):
            raise _invalid_field(clip, name, value, "a pathlib.Path or None")
    if not isinstance(clip.is_image, bool):
        raise _invalid_field(clip, "is_image", clip.is_image, "True or False")
    if clip.event is not None and not _is_event(clip.event):
        raise _invalid_field(clip, "event", clip.event, "(start, end) in seconds with 0 <= start <= end")
    if not isinstance(clip.flags, tuple | list) or not set(map(str, clip.flags)) <= _FLAGS:
        raise _invalid_field(clip, "flags", clip.flags, "a tuple of avdata.SampleFlag")
    if clip.excluded is not None and not is_text(clip.excluded):
        raise _invalid_field(clip, "excluded", clip.excluded, "a sentence or None")
    if not isinstance(clip.excluded_reason, QuarantineReason):
        raise _invalid_field(clip, "excluded_reason", clip.excluded_reason, "an avdata.QuarantineReason")
    if clip.extras and not _is_json(clip.extras):
        raise _invalid_field(clip, "extras", clip.extras, "a mapping from texts to finite JSON values")


_FLAGS = frozenset(map(str, SampleFlag))


def _invalid_field(clip: Clip, name: str, value: object, expected: str) -> AvdataError:
    return AvdataError(
        f"Invalid {name} of the clip {clip.key}: {str(value)[:200]!a}.", hint=f"Use {expected}."
    )


def _is_event(event: object) -> bool:
    if not isinstance(event, tuple | list) or len(event) != 2:
        return False
    is_number = all(isinstance(time, int | float) and not isinstance(time, bool) for time in event)
    return is_number and 0 <= event[0] <= event[1] < math.inf


def _is_json(extras: object) -> bool:
    """Return whether extras are JSON that UTF-8 can encode, without NaN, and with text keys at the top."""
    if not isinstance(extras, Mapping) or not all(isinstance(name, str) for name in extras):
        return False
    try:
        json.dumps(dict(extras), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _check_media(clip: Clip, first: Clip) -> None:
    if clip.video is None and clip.audio is None:
        msg = f"Clip {clip.key} has neither video nor audio."
        raise AvdataError(msg, hint="Set Clip.video, or Clip.audio in a dataset of audio.")
    if (clip.video is None) != (first.video is None):
        msg = f"Clip {clip.key} has {'no' if clip.video is None else 'a'} video, unlike {first.key}."
        raise AvdataError(msg, hint="Set Clip.video for all clips, or for none in a dataset of audio.")
