from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdata.errors import AvdataError
from avdata.shards.members import decode_frames, read_members
from avdata.shards.reader import read_index, read_info
from avdata.shards.sample import read_sample_bytes
from avdata.shards.verify import verify_dataset as verify
from avdata.streaming.collate import decode_strip


@pytest.fixture
def dataset(cremad_set: Path, tmp_path: Path) -> Path:
    shutil.copytree(cremad_set, tmp_path / "dataset")
    return tmp_path / "dataset"


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


def make_a_shard_unreadable(root: Path) -> None:
    shard = first_shard(root)
    shard.unlink()
    # Reading its first byte fails with EIO, as on a failing disk.
    shard.symlink_to("/proc/self/mem")


def rewrite_first_shard(root: Path, change: Callable[[bytearray, dict[str, Any]], bytes]) -> None:
    """Change the first shard and its checksums, as the publisher of a hostile dataset can."""
    shard, info = first_shard(root), json.loads((root / "dataset.json").read_text())
    table = read_index(root)
    rows = table.to_pylist()
    row = next(row for row in rows if row["shard"] == shard.relative_to(root).as_posix())
    data = change(bytearray(shard.read_bytes()), row)
    shard.write_bytes(data)
    row["sha256"] = hashlib.sha256(data[row["offset"] : row["offset"] + row["nbytes"]]).hexdigest()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), root / "index.parquet")
    entry = next(entry for entry in info["splits"]["train"]["shards"] if root / entry["path"] == shard)
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (root / "dataset.json").write_text(json.dumps(info))


def invalidate_a_header_checksum(root: Path) -> None:
    def change(data: bytearray, row: dict[str, Any]) -> bytes:
        data[148:154] = b"000000"
        return bytes(data)

    rewrite_first_shard(root, change)


def replace_a_member_by_a_link(root: Path) -> None:
    def change(data: bytearray, row: dict[str, Any]) -> bytes:
        header = tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict")
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
        data[:512] = header.tobuf(tarfile.USTAR_FORMAT)
        return bytes(data)

    rewrite_first_shard(root, change)


def add_a_member_after_the_last_sample(root: Path) -> None:
    def change(data: bytearray, row: dict[str, Any]) -> bytes:
        stream = io.BytesIO(data)
        with tarfile.open(fileobj=stream, mode="a") as tar:
            tar.addfile(tarfile.TarInfo("x.cls"))
        return stream.getvalue()

    rewrite_first_shard(root, change)


def change_a_count(root: Path) -> None:
    path = root / "dataset.json"
    info = json.loads(path.read_text())
    info["splits"]["train"]["samples"] += 1
    path.write_text(json.dumps(info))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte": (flip_a_byte, "checksum mismatch"),
    "a cut shard": (cut_a_shard, "bytes, not"),
    "a shard that cannot be read": (make_a_shard_unreadable, "cannot be read: Input/output error"),
    "a missing shard": (lambda root: first_shard(root).unlink(), "is missing"),
    "a foreign shard": (
        lambda root: shutil.copy(first_shard(root), root / "train" / "x.tar") and None,
        "does not list",
    ),
    "a changed label": (change_the_index("label", 5), "is not"),
    "a label out of range": (change_the_index("label", -1), "is not"),
    "a changed key": (change_the_index("key", "other"), "in its JSON"),
    "a changed time": (change_the_index("window_start", 7.0), "checksum mismatch with dataset.json"),
    "a changed offset": (change_the_index("offset", 512), "starts at byte"),
    "a leaking group": (leak_a_group, "in several splits"),
    "a wrong count": (change_a_count, "samples"),
    "an invalid header checksum": (invalidate_a_header_checksum, "Invalid tar header"),
    "a link": (replace_a_member_by_a_link, "Missing tar header of a regular file"),
    "a member that the index omits": (add_a_member_after_the_last_sample, "data after its last sample"),
}


def test_verify_finds_no_problem_in_an_intact_dataset(dataset: Path) -> None:
    result = verify(dataset)
    assert result.ok
    assert result.samples == 14
    assert repr(result) == f"VerificationReport({str(dataset)!r}, ok=True, samples=14, problems=0)"


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_reports_damage(dataset: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(dataset)
    problems = verify(dataset).problems
    assert any(message in problem.what for problem in problems), problems


def test_verify_refuses_a_folder_that_is_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(AvdataError, match="not a prepared dataset"):
        verify(tmp_path)


def test_decode_frames_reports_a_truncated_image(cremad_set: Path) -> None:
    members = first_members(cremad_set)
    cut = {**members, "frames.jpg": members["frames.jpg"][:-400]}
    shape = read_info(cremad_set)["shape"]["frames"]
    with pytest.raises(AvdataError, match="truncated or not an image"):
        decode_frames(cut, shape)


def test_decode_frames_returns_the_pixels_of_the_streaming_decoder(cremad_set: Path) -> None:
    members = first_members(cremad_set)
    strip = decode_strip(members)
    frames = decode_frames(members, read_info(cremad_set)["shape"]["frames"])
    assert np.array_equal(np.concatenate(list(frames), axis=1), strip.transpose(1, 2, 0))


def first_members(root: Path) -> dict[str, memoryview]:
    row = read_index(root).to_pylist()[0]
    return dict(read_members(read_sample_bytes(root, row)))


def test_verify_and_report_do_not_import_torch(cremad_set: Path, tmp_path: Path) -> None:
    code = (
        "import sys, avdata; avdata.verify(sys.argv[1]); avdata.report(sys.argv[1], sys.argv[2]);"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(cremad_set), str(tmp_path / "page.html")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["False"]
