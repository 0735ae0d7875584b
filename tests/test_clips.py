"""Clips in compact form are the clips that the recipe returned."""

from __future__ import annotations

import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from avdata.clips import Clip, ClipList
from avdata.errors import QuarantineReason, SampleFlag

PATHS = some.none() | some.sampled_from(
    [Path("/raw/a/b.mp4"), Path("/raw"), Path("/rawer/b.mp4"), Path("b.mp4"), Path("/raw/\udcff.mp4")]
)
CLIPS = some.lists(
    some.builds(
        Clip, some.text(), some.text(), some.text(), some.text(), PATHS, PATHS, some.booleans(),
        some.none() | some.tuples(some.floats(0, 9), some.floats(0, 9)),
        some.lists(some.sampled_from(SampleFlag)).map(tuple), some.none() | some.text(),
        some.sampled_from(QuarantineReason), some.dictionaries(some.text(), some.none() | some.integers()),
    )
)  # fmt: skip


@given(CLIPS, some.none() | some.just(Path("/raw")) | some.just(Path()))
def test_clip_list_returns_equal_clips(clips: list[Clip], root: Path | None) -> None:
    packed = ClipList(iter(clips), root)
    assert list(packed) == clips
    assert [packed[number] for number in range(len(packed))] == clips
    assert packed[1:3] == clips[1:3]
    assert list(packed.take(reversed(range(len(clips))))) == clips[::-1]
    assert pickle.loads(pickle.dumps(packed)) == clips


@pytest.mark.parametrize(
    "changes", [{"video": "a.mp4"}, {"video": PurePosixPath("a.mp4")}, {"extras": {"x": lambda: 0}}]
)
def test_clip_list_keeps_values_that_the_checks_refuse(changes: dict[str, Any]) -> None:
    clip = Clip(**{"key": "k", "label": "a", "group": "g", "split": "train", "video": None, **changes})
    assert ClipList([clip])[0] is clip


def test_clip_list_changes_only_the_copy_that_it_replaces_in() -> None:
    clips = ClipList([Clip(key, "a", "g", "train", None) for key in "ab"])
    copy = clips.take([0, 1])
    copy.replace(1, Clip("c", "a", "g", "train", None))
    assert ([clip.key for clip in copy], [clip.key for clip in clips]) == (["a", "c"], ["a", "b"])


def test_clips_without_extras_share_one_empty_mapping() -> None:
    clip = pickle.loads(pickle.dumps(Clip("k", "a", "g", "train", None)))
    assert clip.extras is Clip("other", "a", "g", "train", None).extras
    assert (clip.extras, dict(clip.extras), repr(clip.extras)) == ({}, {}, "{}")
    with pytest.raises(TypeError):
        clip.extras["x"] = 1  # type: ignore[index]
