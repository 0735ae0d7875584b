"""A user without HOME and without an entry in passwd, as in containers with an arbitrary user ID."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

import avdata
from avdata.cli.console import run_command
from avdata.cli.main import app
from avdata.doctor import check_environment
from avdata.errors import UsageError
from avdata.storage.paths import cache_dir


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "AVDATA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert os.path.expanduser("~") == "~"


def test_cache_dir_names_the_variable_to_set() -> None:
    with pytest.raises(UsageError, match="No cache folder") as raised:
        cache_dir()
    assert raised.value.hint == "Set AVDATA_CACHE to a writable folder."


def test_local_datasets_need_no_cache(cremad_set: Path) -> None:
    dataset = avdata.open(cremad_set, "train")
    assert len(list(dataset)) == len(dataset)
    assert avdata.verify(cremad_set).ok


def test_download_command_names_the_variable_to_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["avdata", "download", "cremad"])
    with pytest.raises(SystemExit) as raised:
        run_command(app)
    assert raised.value.code == 2
    assert "Set AVDATA_CACHE to a writable folder." in capsys.readouterr().err


def test_doctor_reports_the_missing_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "avdata.doctor._probe", lambda libraries: {item.name: (None, "") for item in libraries}
    )
    (check,) = (check for check in check_environment() if check.name == "cache")
    assert check.ok is False
    assert check.advice == "Set AVDATA_CACHE to a writable folder."
