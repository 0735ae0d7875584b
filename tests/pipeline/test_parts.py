"""Parts of a dataset: each clip in exactly one, and together the undivided dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import avdata
from avdata.config.schema import SelectConfig
from avdata.errors import AvdataError, UsageError
from avdata.recipe import Clip
from avdata.selection import part_of, select_clips
from avdata.shards.mel_sums import MelSums
from avdata.shards.parts import merge_infos
from avdata.shards.reader import read_index, read_info
from avdata.storage.remote import open_filesystem


@pytest.fixture
def own_parts(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "parts"))


def clip(number: int, group: int, split: str, excluded: bool) -> Clip:
    return Clip(
        key=f"k{number}", label="a", group=f"g{group}", split=split, video=None, audio=Path("a.wav"),
        excluded="bad" if excluded else None,
    )  # fmt: skip


CLIPS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["train", "val", "test"]), st.booleans()), max_size=40
).map(lambda rows: [clip(number, *row) for number, row in enumerate(rows)])


@given(
    clips=CLIPS,
    count=st.integers(1, 7),
    leakage=st.sampled_from(["keep", "drop-train"]),
    limit=st.none() | st.integers(1, 30),
)
def test_select_clips_puts_each_clip_into_exactly_one_part(
    clips: Sequence[Clip], count: int, leakage: Any, limit: int | None
) -> None:
    def select(part: str | None) -> tuple[list[Clip], list[Any]]:
        return select_clips(clips, SelectConfig(group_leakage=leakage, limit=limit, part=part))

    chosen, excluded = select(None)
    parts = [select(f"{number}/{count}") for number in range(1, count + 1)]
    union = [clip for part, _ in parts for clip in part]
    assert sorted(union, key=repr) == sorted(chosen, key=repr)
    assert sorted((clip for _, part in parts for clip in part), key=repr) == sorted(excluded, key=repr)
    for group in {clip.group for clip in union}:
        assert sum(any(clip.group == group for clip in part) for part, _ in parts) == 1


FINITE_BITS = st.integers(0, 0x7BFF) | st.integers(0x8000, 0xFBFF)


@given(st.lists(st.lists(FINITE_BITS, min_size=4, max_size=4)))
def test_mel_sums_are_exact_in_any_grouping(rows: list[list[int]]) -> None:
    mels = [np.array(row, np.uint16).view(np.float16).reshape(1, 2, 2) for row in rows]
    whole, halves = MelSums(), [MelSums(), MelSums()]
    for number, mel in enumerate(mels):
        whole.add_mel(mel)
        halves[number % 2].add_mel(mel)
    halves[1].add(MelSums.from_json(json.loads(json.dumps(halves[0].to_json()))))
    assert halves[1].to_json() == whole.to_json()
    for band in range(2 if mels else 0):
        values = [Fraction(float(value)) for mel in mels for value in mel[0, band]]
        assert Fraction(whole.sums[band], 1 << 24) == sum(values)
        assert Fraction(whole.squares[band], 1 << 48) == sum(value**2 for value in values)


def test_part_of_is_stable_and_even() -> None:
    numbers = np.bincount([part_of(f"speaker {number}", 4) for number in range(4000)], minlength=5)
    assert numbers[0] == 0
    assert numbers[1:].min() > 900
    assert [part_of(name, 100) for name in ("1001", "1002", "a b")] == [44, 4, 3]  # by sha256sum


def test_merge_makes_the_undivided_dataset_of_its_parts(own_parts: Path, synthetic_set: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in own_parts.rglob("*.tar")}
    merged = avdata.merge(own_parts)
    assert {path: path.stat().st_mtime_ns for path in own_parts.rglob("*.tar")} == before
    report = avdata.verify(own_parts)
    assert report.problems == ()
    info, undivided = read_info(own_parts), read_info(synthetic_set)
    assert merged.info == info
    assert {name for name in info if info[name] != undivided[name]} == {"plan", "splits", "index"}
    for name, split in undivided["splits"].items():
        for field in ("samples", "labels", "groups"):
            assert info["splits"][name][field] == split[field]
    columns = ["key", "split", "label", "sha256"]
    assert (
        read_index(own_parts, columns)
        .sort_by("key")
        .equals(read_index(synthetic_set, columns).sort_by("key"))
    )


def test_open_reads_a_merged_dataset(own_parts: Path, synthetic_set: Path) -> None:
    avdata.merge(own_parts)
    merged, undivided = avdata.open(own_parts), avdata.open(synthetic_set)
    for key in undivided.keys:
        one, other = merged.find(key), undivided.find(key)
        assert one.mel.equal(other.mel)
        assert one.frames.equal(other.frames)


def test_merge_in_a_store_uploads_metadata_only(bucket: str, parts: Path, synthetic_set: Path) -> None:
    files, base = open_filesystem(f"{bucket}/parts")
    files.put(f"{parts}/", f"{base}/", recursive=True)
    before = {name for name in files.find(base) if name.endswith(".tar")}
    avdata.merge(f"{bucket}/parts")
    files.invalidate_cache()
    assert {name for name in files.find(base) if name.endswith(".tar")} == before
    assert (
        json.loads(files.cat_file(f"{base}/dataset.json"))["mel_stats"]
        == read_info(synthetic_set)["mel_stats"]
    )
    assert avdata.open(f"{bucket}/parts").num_samples == avdata.open(synthetic_set).num_samples
    report = avdata.verify(f"{bucket}/parts")
    assert (report.problems, report.samples) == ((), 44)


def test_merge_names_missing_parts_and_folders_without_parts(own_parts: Path, tmp_path: Path) -> None:
    shutil.rmtree(own_parts / "part-2")
    with pytest.raises(AvdataError, match=r"1 parts are missing in .*: 2/3"):
        avdata.merge(own_parts)
    assert not (own_parts / "dataset.json").exists()
    with pytest.raises(AvdataError, match="holds no parts"):
        avdata.merge(own_parts / "part-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["x", "y"]}, "labels of dataset.json differ"),
        ({"config": {"audio": {"n_mels": 16}}}, "audio.n_mels is 16 in b"),
        ({"mel_sums": None}, "records no mel_sums"),
        ({"source": {"checksums": "off"}}, "source of dataset.json differ"),
        ({"config": {"select": {"part": "1/3"}}}, "Part 1/3 occurs twice: a and b"),
        ({"config": {"select": {"part": "2/4"}}}, "different divisions: 1/3 in a, 2/4 in b"),
        ({"config": {"select": {"part": None}}}, "different divisions"),
    ],
)
def test_merge_infos_rejects_datasets_that_differ(parts: Path, change: dict[str, Any], message: str) -> None:
    first, second = read_info(parts / "part-1"), read_info(parts / "part-2")
    config = {
        section: {**values, **change.get("config", {}).get(section, {})}
        for section, values in second["config"].items()
    }
    with pytest.raises(AvdataError, match=message):
        merge_infos({"a": first, "b": {**second, **change, "config": config}})


def test_plan_preparation_refuses_invalid_and_empty_parts(synthetic_mock: Path) -> None:
    for part in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(UsageError, match=r"select\.part"):
            avdata.plan("synthetic", source=synthetic_mock, config={"select": {"part": part}})
    with pytest.raises(AvdataError, match="is empty") as raised:
        avdata.plan("synthetic", source=synthetic_mock, config={"select": {"part": "1/99999"}})
    assert "fewer parts" in str(raised.value)
