"""Source files that are odd in name, type or size: a quarantine row or a sample, never the end of the run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import avdata
from avdata import Clip, Recipe
from avdata.config.schema import AudioConfig
from avdata.errors import QuarantineReason
from avdata.pipeline.validation import LocalFiles, validate_clips
from avdata.shards.reader import read_quarantine

UNDECODABLE = "caf\udce9.mp4"
"""File name in Latin-1, as Python decodes it."""


def reason_of(path: Path, max_bytes: int = 1 << 30) -> QuarantineReason:
    clip = Clip("a", "x", "g", "train", path)
    (result,) = validate_clips([clip], LocalFiles(path.parent, None, None, max_bytes), AudioConfig())
    return result.reason


def test_a_file_beyond_the_limit_is_quarantined_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # nothing of it is on the disk, and reading it takes minutes
    assert reason_of(path) == QuarantineReason.TOO_LARGE


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, QuarantineReason.MISSING_VIDEO),
        (Path.mkdir, QuarantineReason.MISSING_VIDEO),
        (lambda path: path.symlink_to("/dev/zero"), QuarantineReason.MISSING_VIDEO),
        (lambda path: path.symlink_to(path.name), QuarantineReason.MISSING_VIDEO),
        (lambda path: path.write_text("#EXTM3U\nfile:///etc/passwd\n"), QuarantineReason.NOT_MEDIA),
        (lambda path: path.write_text("ffconcat version 1.0\nfile passwd\n"), QuarantineReason.NOT_MEDIA),
    ],
    ids=["pipe", "folder", "device", "loop", "playlist", "concat"],
)  # fmt: skip
def test_what_is_no_media_file_is_quarantined(make, reason: QuarantineReason, tmp_path: Path) -> None:
    make(tmp_path / "a.mp4")
    assert reason_of(tmp_path / "a.mp4") == reason


def test_a_name_that_the_system_refuses_is_quarantined(tmp_path: Path) -> None:
    assert reason_of(tmp_path / ("a" * 5000)) == QuarantineReason.UNREADABLE
    assert reason_of(tmp_path / "a\0b") == QuarantineReason.MISSING_VIDEO


def test_prepare_and_report_accept_a_file_name_that_is_not_utf8(cremad_mock: Path, tmp_path: Path) -> None:
    source, names = tmp_path / "in", [f"a-{UNDECODABLE}", f"b-{UNDECODABLE}", f"c-{UNDECODABLE}"]
    source.mkdir()
    shutil.copy(next(cremad_mock.glob("VideoFlash/*.flv")), source / names[0])
    (source / names[1]).write_bytes(b"no media")
    recipe = Recipe(
        "mine", 1, "Mine", ("x",), {"all": "one split"}, "all",
        lambda root, split: [Clip(name[0], "x", name[0], "train", root / name) for name in names],
    )  # fmt: skip
    config = {"video": {"size": 16}, "audio": {"n_mels": 16}}
    avdata.prepare(
        recipe, source=source, output=tmp_path / "out", config=config, checksums=False, workers=0,
        max_quarantine=1.0,
    )  # fmt: skip
    rows = {row["key"]: row for row in read_quarantine(tmp_path / "out").to_pylist()}
    assert {key: row["reason"] for key, row in rows.items()} == {"b": "not_media", "c": "missing_video"}
    assert r"b-caf\udce9.mp4" in rows["b"]["detail"]
    assert avdata.verify(tmp_path / "out").ok
    assert r"a-caf\udce9.mp4" in avdata.report(tmp_path / "out").read_text(encoding="utf-8")
