from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some

from avdata.recipe import Clip
from avdata.selection import limit_clips

counts = some.dictionaries(
    some.tuples(some.sampled_from(("train", "val", "test")), some.sampled_from("abcd")),
    some.integers(1, 60),
    min_size=1,
)


def make_clips(sizes: dict[tuple[str, str], int]) -> list[Clip]:
    return [
        Clip(key=f"{split}-{label}-{number}", label=label, group="g", split=split, video=Path("x"))
        for (split, label), size in sizes.items()
        for number in range(size)
    ]


@given(counts, some.integers(1, 200), some.integers(0, 3))
def test_limit_clips_keeps_proportions_and_gives_exactly_the_limit(
    sizes: dict[tuple[str, str], int], limit: int, seed: int
) -> None:
    clips = make_clips(sizes)
    chosen = limit_clips(clips, limit, seed)
    assert len(chosen) == min(limit, len(clips))
    assert chosen == [clip for clip in clips if clip in chosen]
    assert chosen == limit_clips(clips, limit, seed)
    splits, kept = Counter(clip.split for clip in clips), Counter(clip.split for clip in chosen)
    if limit >= len(splits):
        assert kept.keys() == splits.keys()
    for split, size in splits.items():
        # Within one clip of the exact share, apart from the clips that keep every split.
        assert abs(kept[split] - len(chosen) * size / len(clips)) < 3
        for label in "abcd":
            share = kept[split] * sizes.get((split, label), 0) / size
            assert abs(sum(clip.split == split and clip.label == label for clip in chosen) - share) < 1


def test_limit_clips_uses_largest_remainders() -> None:
    sizes = {("train", "a"): 60, ("train", "b"): 20, ("val", "a"): 10, ("test", "b"): 10}
    chosen = Counter((clip.split, clip.label) for clip in limit_clips(make_clips(sizes), 10, 0))
    assert chosen == {("train", "a"): 6, ("train", "b"): 2, ("val", "a"): 1, ("test", "b"): 1}
