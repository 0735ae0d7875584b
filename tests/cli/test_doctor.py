from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import requires
from pathlib import Path

import pytest
from typer.testing import CliRunner

import avdata.doctor as doctor_module
from avdata.cli.main import app
from avdata.doctor import _Library, check_environment
from avdata.media.decoders import DECODERS

NUMPY = _Library("numpy", "import numpy", True, "arrays", "pip install numpy")
LIBRARY_GROUPS = doctor_module._LIBRARY_GROUPS
PYARROW = _Library("pyarrow", "import pyarrow", True, "tables", "pip install pyarrow")


@pytest.fixture(autouse=True)
def _few_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_LIBRARY_GROUPS", ((NUMPY,),))


def check_of(name: str) -> doctor_module.Check:
    return next(check for check in check_environment() if check.name == name)


def test_check_passes_for_a_working_library() -> None:
    assert check_of("numpy").ok is True


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("raise OSError('libc10_cuda.so: no such file')", "libc10_cuda.so"),
        ("import os; os.abort()", "code -6"),
    ],
)
def test_check_explains_a_broken_library_that_crashes_its_process(
    monkeypatch: pytest.MonkeyPatch, probe: str, expected: str
) -> None:
    broken = _Library("numpy", probe, True, "arrays", "reinstall it")
    monkeypatch.setattr(doctor_module, "_LIBRARY_GROUPS", ((broken, PYARROW),))
    check = check_of("numpy")
    assert check.ok is False
    assert expected in check.found
    assert check.advice == "reinstall it"
    assert check_of("pyarrow").ok is True  # checked after it
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_doctor_accepts_a_missing_optional_library(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = _Library("no-such-library", "", False, "nothing", "pip install it")
    monkeypatch.setattr(doctor_module, "_LIBRARY_GROUPS", ((NUMPY, absent),))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_doctor_reports_tokens_without_printing_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_of("Hugging Face token").found == "none"
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text('{"key": "another_secret"}')
    printed = CliRunner().invoke(app, ["doctor", "--json"]).stdout
    assert "HF_TOKEN" in printed
    assert "kaggle.json" in printed
    assert "secret" not in printed
    assert {"name", "ok", "found", "advice"} <= set(json.loads(printed)[0])


def test_required_decoders_are_available() -> None:
    assert check_of("decoders").ok is True
    assert "vp6f" in check_of("decoders").found  # the video codec of CREMA-D


def test_check_times_out_for_a_hanging_library_only(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = _Library("numpy", "import signal; signal.pause()", True, "arrays", "reinstall it")
    monkeypatch.setattr(doctor_module, "PROBE_TIMEOUT_S", 2)
    monkeypatch.setattr(doctor_module, "_LIBRARY_GROUPS", ((stuck, PYARROW),))
    assert "within 2 s" in check_of("numpy").found
    assert check_of("pyarrow").ok is not None


def test_check_ignores_output_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    loud = _Library("numpy", "print('[null, 1]'); raise OSError('gone')", True, "arrays", "reinstall it")
    monkeypatch.setattr(doctor_module, "_LIBRARY_GROUPS", ((loud,),))
    assert "OSError: gone" in check_of("numpy").found


def test_required_libraries_are_dependencies_of_the_package() -> None:
    dependencies = {
        re.split(r"[^\w-]", line)[0] for line in requires("avdata") or () if "extra ==" not in line
    }
    needed = {library.name for chain in LIBRARY_GROUPS for library in chain if library.needed}
    assert needed <= dependencies
    assert {"torch", "torchvision", "av", "pyarrow"} <= needed


def test_doctor_shows_the_ffmpeg_program_and_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    check = check_of("ffmpeg")
    assert check.ok is True
    assert f"{DECODERS['ffmpeg'].program_version()}, {shutil.which('ffmpeg')} (optional" in check.found
    monkeypatch.setenv("PATH", "/nonexistent")
    check = check_of("ffmpeg")
    assert (check.ok, check.needed) == (None, False)
    assert "Install ffmpeg" in str(check.advice)


def test_doctor_lists_the_package_of_every_decoder() -> None:
    names = {library.name for group in LIBRARY_GROUPS for library in group}
    assert {decoder.package for decoder in DECODERS.values()} <= names
