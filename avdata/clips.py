"""Clips of a recipe, and a compact form of many.

A clip with one file takes 0.5 kB as an object and 0.15 kB in a `ClipList`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

from avdata.errors import QuarantineReason, SampleFlag


class _NoExtras(Mapping[str, Any]):
    """Empty mapping that all clips share: a dict for each would take 80 bytes a clip."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return hash(())

    def __repr__(self) -> str:
        return "{}"

    def __reduce__(self) -> str:
        return "NO_EXTRAS"


NO_EXTRAS: Mapping[str, Any] = _NoExtras()


@dataclass(frozen=True, slots=True)
class Clip:
    """Item of a dataset before feature extraction.

    Attributes:
        key: unique name, `[A-Za-z0-9_-]+`, not starting with `__`. It names the sample's members.
        label: one of the recipe's `labels`.
        group: unit that a split must not divide: speaker, recording, video.
        split: `train`, `val` or `test`.
        video: video or image file, which need not exist; None for a dataset of audio, whose samples have no
            frames. Then it is None for all clips.
        audio: separate audio file, which need not exist; None if the dataset has none.
        is_image: whether `video` is a still image, used for all frames.
        event: [start, end) in seconds in which the label applies; None if it applies throughout.
        flags: flags that are known before the clip is opened.
        excluded: one sentence why the recipe excludes the clip; None if it does not. The label and split of
            an excluded clip may be empty.
        excluded_reason: code with which an excluded clip is quarantined.
        extras: small values to store in the sample's JSON.
    """

    key: str
    label: str
    group: str
    split: str
    video: Path | None
    audio: Path | None = None
    is_image: bool = False
    event: tuple[float, float] | None = None
    flags: tuple[SampleFlag, ...] = ()
    excluded: str | None = None
    excluded_reason: QuarantineReason = QuarantineReason.KNOWN_BAD
    extras: Mapping[str, Any] = NO_EXTRAS

    def __reduce__(self) -> tuple[type[Clip], tuple[Any, ...]]:
        """Return what pickle needs; that of a dataclass takes three times as long."""
        return type(self), _VALUES(self)


_PATH = type(Path())
_PATHS = ("video", "audio")
_NAMES = tuple(field.name for field in fields(Clip))
_VALUES: Callable[[Clip], tuple[Any, ...]] = attrgetter(*_NAMES)
_REQUIRED = _NAMES.index("is_image")  # fields that each clip stores
_DEFAULTS = tuple(field.default for field in fields(Clip))[_REQUIRED:]


class ClipList(Sequence[Clip]):
    """Immutable sequence of clips, which are created for each use.

    >>> clips = ClipList([Clip("a", "x", "g", "train", Path("raw/a.mp4")), Clip("b", "x", "g", "val", None)])
    >>> [clip.key for clip in clips.take([1, 0])], clips[0].video == Path("raw/a.mp4")
    (['b', 'a'], True)

    Args:
        clips: any clips, also invalid ones.
        root: folder of their files, which is stored once.
    """

    def __init__(self, clips: Iterable[Clip] = (), root: Path | None = None) -> None:
        self._root = f"{root}/" if root is not None else ""
        self._items: list[bytes | Clip] = [self._pack(clip) for clip in clips]

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> ClipList:
        """Return clips as this type."""
        return clips if isinstance(clips, cls) else cls(clips)

    def _pack(self, clip: Clip) -> bytes | Clip:
        """Return a clip as bytes; an invalid clip that cannot be stored unchanged is returned."""
        values = list(_VALUES(clip))
        for name in _PATHS:
            number = _NAMES.index(name)
            if type(values[number]) is _PATH:
                values[number] = self._shorten(str(values[number]))
            elif values[number] is not None:
                return clip
        if tuple(values[_REQUIRED:]) == _DEFAULTS:
            del values[_REQUIRED:]
        try:
            return pickle.dumps(tuple(values), pickle.HIGHEST_PROTOCOL)  # read only by this process
        except Exception:  # a value of any type, which the checks of the clips will name
            return clip

    def _shorten(self, path: str) -> tuple[str] | str:
        """Return a path below the root as text, and any other path in a tuple."""
        return path.removeprefix(self._root) if path.startswith(self._root) else (path,)

    def _unpack(self, item: bytes | Clip) -> Clip:
        if isinstance(item, Clip):
            return item
        values = list(pickle.loads(item))  # noqa: S301  # our own
        for number in range(_NAMES.index("video"), _REQUIRED):
            if (path := values[number]) is not None:
                values[number] = Path(*path) if isinstance(path, tuple) else Path(self._root + path)
        return Clip(*values)

    def take(self, positions: Iterable[int]) -> ClipList:
        """Return the clips at some positions, which take no memory of their own."""
        return self._of_items([self._items[position] for position in positions])

    def replace(self, position: int, clip: Clip) -> None:
        """Replace a clip."""
        self._items[position] = self._pack(clip)

    def _of_items(self, items: list[bytes | Clip]) -> ClipList:
        clips = ClipList()
        clips._root, clips._items = self._root, items
        return clips

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Clip]:
        return map(self._unpack, self._items)

    @overload
    def __getitem__(self, number: int) -> Clip: ...

    @overload
    def __getitem__(self, number: slice) -> ClipList: ...

    def __getitem__(self, number: int | slice) -> Clip | ClipList:
        if isinstance(number, slice):
            return self._of_items(self._items[number])
        return self._unpack(self._items[number])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self._items))
