"""Source files that change between two runs, with equal size and time, never become samples."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

import avdata
from avdata.cli import console
from avdata.cli.main import app
from avdata.errors import QuarantineReason
from avdata.shards.reader import read_index, read_info, read_quarantine

SETTINGS = {"video": {"size": 32}, "select": {"limit": 4}}


def flip_byte(path: Path) -> None:
    """Change a byte in the middle of a file; size, modification time and inode stay."""
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.seek(stat.st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def source(cremad_mock: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cremad_mock, tmp_path / "raw"))


@pytest.mark.parametrize(("role", "checksums"), [("video", True), ("audio", False)])
def test_prepare_quarantines_a_file_that_rotted_after_it_was_cached_as_verified(
    role: str, checksums: bool, source: Path, tmp_path: Path
) -> None:
    plan = avdata.plan("cremad", source=source, config=SETTINGS, checksums=checksums)
    rotted = plan.clips[0]
    flip_byte(getattr(rotted, role))
    again = avdata.plan("cremad", source=source, config=SETTINGS, checksums=checksums)
    assert rotted in again.clips  # the cached checksum saves the survey
    avdata.prepare(
        "cremad", source=source, output=tmp_path / "set", config=SETTINGS, checksums=checksums, workers=0,
        max_quarantine=1.0,
    )  # fmt: skip
    (row,) = read_quarantine(tmp_path / "set").to_pylist()
    assert (row["key"], row["reason"]) == (rotted.key, QuarantineReason.CHECKSUM)
    assert f"{getattr(rotted, role).name}: sha256:" in row["detail"]
    assert rotted.key not in read_index(tmp_path / "set")["key"].to_pylist()
    if checksums:
        files = read_info(tmp_path / "set")["source"]["files"]
        assert files == {"verified": {"sha256": 6}, "unverified": 0}


def test_prepare_prints_the_files_that_rotted(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = avdata.plan("cremad", source=source, config=SETTINGS)
    flip_byte(plan.clips[0].audio)
    words = ["prepare", "cremad", "--source", str(source), "--output", str(tmp_path / "set")]
    words += ["--limit", "4", "--set", "video.size=32", "--workers", "0", "--max-quarantine", "1"]
    monkeypatch.setattr(sys, "argv", ["avdata", *words])
    with pytest.raises(SystemExit) as caught:
        console.run_command(app)
    assert caught.value.code in (0, None)
    printed = "".join(capsys.readouterr())
    assert "checksum_mismatch" in printed


def test_prepare_with_rehash_finds_a_rotted_file_in_the_survey(source: Path) -> None:
    plan = avdata.plan("cremad", source=source, config=SETTINGS)
    flip_byte(plan.clips[0].audio)
    again = avdata.plan("cremad", source=source, config=SETTINGS, rehash=True)
    assert [(clip.key, clip.reason) for clip in again.quarantined] == [
        (plan.clips[0].key, QuarantineReason.CHECKSUM)
    ]
