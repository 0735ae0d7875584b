"""Layouts of copies of the datasets, through the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avdata.cli.main import app
from avdata.shards.reader import read_info


def mp4_folder(root: Path) -> None:
    (root / "VideoFlash").rename(root / "VideoMP4")
    for path in (root / "VideoMP4").iterdir():
        path.rename(path.with_suffix(".mp4"))
    for path in (root / "AudioWAV").iterdir():
        path.rename(path.with_suffix(".WAV"))


def audio_alone(root: Path) -> None:
    shutil.rmtree(root / "VideoFlash")
    for path in (root / "AudioWAV").iterdir():
        path.rename(root / path.name)


def lists_in_data(root: Path) -> None:
    (root / "AVE_Dataset" / "AVE").rename(root / "AVE")
    (root / "AVE_Dataset").rename(root / "data")
    for path in (root / "AVE").glob("*.mp4"):
        path.rename(path.with_name(f"{path.stem}_10_20.mp4"))


@pytest.mark.parametrize(
    ("recipe", "mock", "change", "frames"),
    [
        ("cremad", "cremad_mock", mp4_folder, [4, 16, 16, 3]),
        ("cremad-audio", "cremad_mock", audio_alone, None),
        ("ave", "ave_mock", lists_in_data, [10, 16, 16, 3]),
    ],
)
def test_prepare_accepts_the_layout_of_a_copy(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    recipe: str,
    mock: str,
    change: Callable[[Path], None],
    frames: list[int] | None,
) -> None:
    source = shutil.copytree(request.getfixturevalue(mock), tmp_path / "source")
    change(source)
    words = ["prepare", recipe, "--source", str(source), "--output", str(tmp_path / "out"), "--workers", "0"]
    done = CliRunner().invoke(app, [*words, "--set", "video.size=16"])
    assert done.exit_code == 0, done.output
    info = read_info(tmp_path / "out")
    assert info["shape"]["frames"] == frames
    assert info["quarantine"] == {}
    assert info["source"]["files"]["unverified"] == 0


def test_prepare_refuses_a_folder_of_audio_and_names_the_alternative(
    cremad_mock: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(cremad_mock, tmp_path / "source")
    audio_alone(source)
    done = CliRunner().invoke(
        app, ["prepare", "cremad", "--source", str(source), "--output", str(tmp_path / "out")]
    )
    assert done.exit_code == 1
    assert "only the audio of CREMA-D: 14 files" in str(done.exception)
    assert not (tmp_path / "out" / "dataset.json").exists()
