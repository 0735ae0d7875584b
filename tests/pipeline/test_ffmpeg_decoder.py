"""A preparation with `video.decoder=ffmpeg`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import wait_until_ended
from support.trees import digest_tree

import avdata
from avdata.media.decoders import DECODERS
from avdata.shards.reader import read_index, read_quarantine

SETTINGS = {"video": {"size": 32, "decoder": "ffmpeg"}, "select": {"limit": 6}}


def test_prepare_with_ffmpeg_keeps_the_clips_and_records_the_version(
    cremad_bad: Path, tmp_path: Path
) -> None:
    done = avdata.prepare("cremad", source=cremad_bad, output=tmp_path / "a", config=SETTINGS, workers=0)
    settings = {**SETTINGS, "video": {"size": 32}}
    expected = avdata.prepare("cremad", source=cremad_bad, output=tmp_path / "b", config=settings, workers=0)
    columns = ["key", "window_start", "window_end", "flags"]
    assert read_index(done.root).select(columns) == read_index(expected.root).select(columns)
    assert read_quarantine(done.root) == read_quarantine(expected.root)
    assert done.info["tools"]["ffmpeg"] == DECODERS["ffmpeg"].program_version()
    assert "ffmpeg" not in expected.info["tools"]
    again = avdata.prepare("cremad", source=cremad_bad, output=tmp_path / "c", config=SETTINGS, workers=1)
    assert digest_tree(Path(again.root)) == digest_tree(Path(done.root))


# With the short limit, the engine kills the worker before ffmpeg is late.
@pytest.mark.parametrize("timeout", [1.0, pytest.param(5.0, marks=pytest.mark.exhaustive)])
def test_hanging_ffmpeg_becomes_a_quarantine_row_and_leaves_no_process(
    cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    pids = tmp_path / "pids"
    script = f"""#!/bin/sh
case "$*" in *-version*) echo "ffmpeg version 7.1"; exit;; esac
echo $$ >> {pids}
exec sleep 1000
"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text(script)
    (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    settings = {**SETTINGS, "select": {"limit": 1}, "quality": {"timeout": timeout}}
    done = avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "out", config=settings, workers=1)
    assert read_quarantine(done.root).column("reason").to_pylist() == ["timeout"]
    for pid in pids.read_text().split():
        assert wait_until_ended(int(pid))


def test_prepare_without_an_ffmpeg_program_exits_with_2_before_the_survey(tmp_path: Path) -> None:
    command = ["prepare", "synthetic", "--output", str(tmp_path / "out"), "--set", "video.decoder=ffmpeg"]
    done = subprocess.run(
        [sys.executable, "-m", "avdata", *command],
        env={**os.environ, "PATH": "/nonexistent"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Install ffmpeg" in done.stderr
    assert not (tmp_path / "out").exists()
