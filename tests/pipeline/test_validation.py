"""Validation of many clips in threads, and their assignment to shards."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from avdata.config.schema import AudioConfig
from avdata.pipeline import validation
from avdata.pipeline.sharding import PackedClips, assign_shards, sort_for_shards
from avdata.pipeline.validation import LocalFiles, SourceFile, ValidClip, validate_clips
from avdata.recipe import Clip
from avdata.selection import QuarantinedClip, hash_order
from avdata.shards.format import shard_name


class Names:
    """Lookup in which files with an even number exist."""

    def has(self, path: Path) -> bool:
        return int(path.name) % 2 == 0

    def verify(self, path: Path) -> SourceFile:
        return SourceFile(path.name, "0" * 64, 1)

    def name(self, path: Path) -> str:
        return path.name


@pytest.mark.parametrize("count", [1, 40, 5_000])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("quick_clip", [0.0, 1.0])
def test_validate_clips_keeps_the_order_and_reports_each_clip(
    count: int, threads: int, quick_clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_QUICK_CLIP_S", quick_clip)  # 0: threads after the first parts
    clips = [Clip(f"c{number}", "a", "g", "train", Path(str(number))) for number in range(count)]
    reported: Counter[int] = Counter()
    results = validate_clips(
        clips, Names(), AudioConfig(), threads=threads, advance=lambda done: reported.update([done])
    )
    keys = [result.key if isinstance(result, QuarantinedClip) else result.clip.key for result in results]
    assert keys == [f"c{number}" for number in range(count)]
    assert reported == {1: count}


def test_packed_clips_are_equal_and_smaller_than_their_objects() -> None:
    sha256 = [hashlib.sha256(bytes([number])).hexdigest() for number in range(256)]
    clips = [
        ValidClip(
            Clip(f"c{number}", "a", f"g{number}", "train", Path(f"/data/set/video/c{number}.mp4")),
            SourceFile(f"video/c{number}.mp4", sha256[number], 1000 + number), None,
        )
        for number in range(256)
    ]  # fmt: skip
    packed = PackedClips(clips)
    assert (len(packed), list(packed), packed[3], packed[-2:]) == (256, clips, clips[3], tuple(clips[-2:]))
    copied = pickle.loads(pickle.dumps(packed))
    assert copied == packed
    assert len(pickle.dumps(packed)) < 150 * 256


@given(st.lists(st.sampled_from(["train", "val", "test"]), max_size=30), st.integers(1, 7))
def test_assign_shards_fills_each_shard_of_a_split(splits: list[str], size: int) -> None:
    clips = [Clip(f"c{number}", "a", "g", split, Path("v")) for number, split in enumerate(splits)]
    candidates = (ValidClip(clip, None, None) for clip in sort_for_shards(clips, seed=3))
    jobs = assign_shards("set", candidates, size)
    keys = [candidate.clip.key for _, shard in jobs for candidate in shard]
    assert sorted(keys) == sorted(clip.key for clip in clips)
    for split in ("train", "val", "test"):
        own = [(name, shard) for name, shard in jobs if name.startswith(f"{split}/")]
        assert [len(shard) for _, shard in own[:-1]] == [size] * (len(own) - 1)
        assert [name for name, _ in own] == [
            shard_name("set", split, number, len(own)) for number in range(len(own))
        ]
        order = [hash_order(candidate.clip.key, 3) for _, shard in own for candidate in shard]
        assert order == sorted(order)


@pytest.mark.parametrize(
    ("root", "path", "name"),
    [
        ("/data/set", "/data/set/a/b.mp4", "a/b.mp4"),
        ("/data/set/", "/data/settings/b.mp4", "b.mp4"),
        ("/", "/a/b.mp4", "a/b.mp4"),
        ("set", "set/b.mp4", "b.mp4"),
        (".", "a/b.mp4", "a/b.mp4"),
        (".", "/elsewhere/b.mp4", "b.mp4"),
    ],
)
def test_local_file_is_named_below_the_root_or_by_its_name(root: str, path: str, name: str) -> None:
    assert LocalFiles(Path(root), None, None).name(Path(path)) == name
