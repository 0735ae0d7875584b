from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdata.errors import AvdataError
from avdata.shards.reader import decode_frames, read_index, read_members
from avdata.shards.sample import read_sample_bytes
from avdata.shards.verify import verify
from avdata.streaming.collate import decode_strip


@pytest.fixture
def copy(cremad_set: Path, tmp_path: Path) -> Path:
    shutil.copytree(cremad_set, tmp_path / "set")
    return tmp_path / "set"


def first_shard(root: Path) -> Path:
    return sorted(root.glob("train/*.tar"))[0]


def flip_a_byte(root: Path) -> None:
    shard = first_shard(root)
    data = bytearray(shard.read_bytes())
    data[5_000] ^= 1
    shard.write_bytes(bytes(data))


def cut_a_shard(root: Path) -> None:
    shard = first_shard(root)
    shard.write_bytes(shard.read_bytes()[:-20_480])


def change_the_index(column: str, value: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        table = read_index(root)
        rows = table.to_pylist()
        rows[0][column] = value
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), root / "index.parquet")

    return change


def leak_a_group(root: Path) -> None:
    table = read_index(root)
    rows = table.to_pylist()
    held_out = next(row for row in rows if row["split"] == "test")
    next(row for row in rows if row["split"] == "train")["group"] = held_out["group"]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), root / "index.parquet")


def unreadable_shard(root: Path) -> None:
    shard = first_shard(root)
    shard.unlink()
    # A file whose first byte the kernel refuses, as of a failing disk.
    shard.symlink_to("/proc/self/mem")


def miscount(root: Path) -> None:
    path = root / "dataset.json"
    info = json.loads(path.read_text())
    info["splits"]["train"]["samples"] += 1
    path.write_text(json.dumps(info))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte": (flip_a_byte, "checksum"),
    "a cut shard": (cut_a_shard, "bytes, not"),
    "a shard that cannot be read": (unreadable_shard, "cannot be read: Input/output error"),
    "a missing shard": (lambda root: first_shard(root).unlink(), "is missing"),
    "a foreign shard": (
        lambda root: shutil.copy(first_shard(root), root / "train" / "x.tar") and None,
        "does not know",
    ),
    "a changed label": (change_the_index("label", 5), "is not"),
    "a label out of range": (change_the_index("label", -1), "is not"),
    "a changed key": (change_the_index("key", "other"), "JSON speaks of"),
    "a changed time": (change_the_index("window_start", 7.0), "its checksum is not the one"),
    "a changed offset": (change_the_index("offset", 512), "starts at byte"),
    "a leaking group": (leak_a_group, "in several splits"),
    "a wrong count": (miscount, "samples"),
}


def test_a_good_set_has_no_problems(copy: Path) -> None:
    verdict = verify(copy)
    assert verdict.ok
    assert verdict.samples == 14


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(copy: Path, damage: str) -> None:
    harm, said = DAMAGES[damage]
    harm(copy)
    problems = verify(copy).problems
    assert any(said in problem.what for problem in problems), problems


def test_a_folder_that_is_no_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AvdataError, match="not a prepared set"):
        verify(tmp_path)


def test_a_picture_that_is_cut_short_is_named(cremad_set: Path) -> None:
    members = first_members(cremad_set)
    cut = {**members, "frames.jpg": members["frames.jpg"][:-400]}
    with pytest.raises(AvdataError, match="not a whole picture"):
        decode_frames(cut, 4)


def test_who_looks_sees_the_very_pixels_that_the_stream_gives(cremad_set: Path) -> None:
    members = first_members(cremad_set)
    strip = decode_strip(members)
    looked = decode_frames(members, 4)
    assert np.array_equal(np.concatenate(list(looked), axis=1), strip.transpose(1, 2, 0))


def first_members(root: Path) -> dict[str, memoryview]:
    row = read_index(root).to_pylist()[0]
    return dict(read_members(read_sample_bytes(root, row)))


def test_verifying_and_reporting_start_without_torch(cremad_set: Path, tmp_path: Path) -> None:
    code = (
        "import sys, avdata; avdata.verify(sys.argv[1]); avdata.report(sys.argv[1], sys.argv[2]);"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(cremad_set), str(tmp_path / "page.html")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["False"]
