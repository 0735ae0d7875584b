"""The `ffmpeg` program: how it is found, started, limited and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg
import pytest
from support.containers import SMALL_SCENE
from support.processes import wait_until_ended

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason, UsageError
from avdata.media import ffmpeg_program
from avdata.media.audio import decode_audio
from avdata.media.decoders import DECODERS
from avdata.media.ffmpeg_program import ffmpeg_version, find_ffmpeg, passthrough_option
from avdata.media.video import read_frame_times
from avdata.testing.media import write_av

QUALITY = QualityConfig()
DECODER = DECODERS["ffmpeg"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_av(path, SMALL_SCENE, vcodec="libx264", acodec="aac")
    return path


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a shell script and put it first on PATH as `ffmpeg`."""

    def write(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    return write


VERSION = 'case "$*" in *-version*) echo "ffmpeg version 7.1"; exit;; esac\n'


def test_hanging_ffmpeg_is_killed_with_its_children_at_the_time_limit(
    clip: Path, program: Any, tmp_path: Path
) -> None:
    frame_times = read_frame_times(clip, QUALITY)
    program(f"{VERSION}sleep 1000 &\necho $! > {tmp_path}/pid\nwait")
    began = time.monotonic()
    with pytest.raises(MediaError) as caught:
        DECODER.frames_at(clip, frame_times, [0.5], quality=QualityConfig(timeout=0.5))
    assert time.monotonic() - began < 60
    assert caught.value.reason is QuarantineReason.TIMEOUT
    assert wait_until_ended(int((tmp_path / "pid").read_text()))


def test_endless_log_without_line_breaks_is_harmless(clip: Path, program: Any) -> None:
    real = imageio_ffmpeg.get_ffmpeg_exe()
    program(f"{VERSION}head -c 20000000 /dev/zero | tr '\\0' x >&2; echo >&2\nexec {real} \"$@\"")
    track = decode_audio(clip, QUALITY, decoder="ffmpeg")
    assert len(track.samples) / track.rate == pytest.approx(SMALL_SCENE.seconds, abs=0.05)


def test_ffmpeg_gets_no_stdin_no_shell_and_one_allowed_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "$(touch owned) -y; x.mp4"
    write_av(tmp_path / name, SMALL_SCENE, vcodec="libx264", acodec="aac")
    commands: list[tuple[list[str], dict[str, Any]]] = []
    start = subprocess.Popen

    def record(command: list[str], **options: Any) -> Any:
        commands.append((command, options))
        return start(command, **options)

    monkeypatch.setattr(ffmpeg_program.subprocess, "Popen", record)
    monkeypatch.setenv("FFREPORT", f"file={tmp_path}/report.log")
    decode_audio(tmp_path / name, QUALITY, decoder="ffmpeg")
    command, options = commands[-1]
    assert command[command.index("-protocol_whitelist") + 1] == "file"
    assert command[command.index("-f") + 1] == "mov"
    assert command[command.index("-i") + 1] == f"file:{tmp_path / name}"
    assert options["stdin"] is subprocess.DEVNULL
    assert not options.get("shell")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_version_and_passthrough_option_follow_the_program(program: Any) -> None:
    assert ffmpeg_version(str(find_ffmpeg())) == DECODER.program_version()
    program("echo 'ffmpeg version 4.2.2-static Copyright (c)'")
    assert DECODER.program_version() == "4.2.2-static"
    assert passthrough_option(str(find_ffmpeg())) == {"vsync": "passthrough"}


@pytest.mark.parametrize(
    ("version", "name"),
    [("5.0.1", "vsync"), ("5.1", "fps_mode"), ("n9.0.2-17", "fps_mode"), ("N-1-g2", "fps_mode")],
)
def test_passthrough_option_is_one_that_the_version_has(program: Any, version: str, name: str) -> None:
    program(f"echo 'ffmpeg version {version} Copyright'")
    assert list(passthrough_option(str(find_ffmpeg()))) == [name]


def test_decoder_without_a_program_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match=r"PATH has none\.\nInstall ffmpeg"):
        DECODER.check_available(VideoConfig(decoder="ffmpeg"))
    assert DECODER.program_version() is None


def test_decoder_with_a_broken_program_is_a_usage_error(program: Any) -> None:
    program("exit 127")
    with pytest.raises(UsageError, match="does not start"):
        DECODER.check_available(VideoConfig(decoder="ffmpeg"))


def test_unavailable_hardware_decoder_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"cannot use video\.hwaccel=vdpau"):
        DECODER.check_available(VideoConfig(decoder="ffmpeg", hwaccel="vdpau"))


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_without_its_package_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, DECODERS[name].module, None)
    with pytest.raises(UsageError, match=f"requires the package {DECODERS[name].package}"):
        DECODERS[name].check_available(VideoConfig())


def test_ffmpeg_decoder_needs_ffmpeg_python(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[str]] = []
    build = ffmpeg.compile

    def record(*arguments: Any, **options: Any) -> list[str]:
        built.append(build(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(ffmpeg, "compile", record)
    assert len(DECODER.frames_at(clip, read_frame_times(clip, QUALITY), [0.5])) == len(built) == 1
    monkeypatch.setitem(sys.modules, "ffmpeg", None)
    with pytest.raises(ImportError):
        DECODER.frames_at(clip, read_frame_times(clip, QUALITY), [0.5])
