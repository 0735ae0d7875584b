from __future__ import annotations

import json
import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from typer.testing import CliRunner

import avdata.doctor as room
from avdata.cli.main import app
from avdata.doctor import _Library, check_environment

WHOLE = _Library("numpy", "import numpy", True, "arrays", "pip install numpy")
TRUE_CHAINS = room._LIBRARY_GROUPS
OTHER = _Library("pyarrow", "import pyarrow", True, "tables", "pip install pyarrow")


@pytest.fixture(autouse=True)
def _few_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LIBRARY_GROUPS", ((WHOLE,),))


def about(name: str) -> room.Check:
    return next(one for one in check_environment() if one.name == name)


def test_a_library_that_works_is_well() -> None:
    assert about("numpy").ok is True


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        ("raise OSError('libc10_cuda.so: no such file')", "libc10_cuda.so"),
        ("import os; os.abort()", "code -6"),
    ],
)
def test_a_broken_library_is_explained_even_where_it_takes_its_process_down(
    monkeypatch: pytest.MonkeyPatch, proof: str, said: str
) -> None:
    broken = _Library("numpy", proof, True, "arrays", "mend it so")
    monkeypatch.setattr(room, "_LIBRARY_GROUPS", ((broken, OTHER),))
    found = about("numpy")
    assert found.ok is False
    assert said in found.found
    assert found.advice == "mend it so"
    assert about("pyarrow").ok is True  # proven after it
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_a_library_that_is_not_needed_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = _Library("no-such-library", "", False, "nothing", "pip install it")
    monkeypatch.setattr(room, "_LIBRARY_GROUPS", ((WHOLE, absent),))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_a_token_is_found_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert about("Hugging Face token").found == "none"
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text('{"key": "another_secret"}')
    said = CliRunner().invoke(app, ["doctor", "--json"]).stdout
    assert "HF_TOKEN" in said
    assert "kaggle.json" in said
    assert "secret" not in said
    assert {"name", "ok", "found", "advice"} <= set(json.loads(said)[0])


def test_the_decoders_that_public_datasets_need_are_there() -> None:
    assert about("decoders").ok is True
    assert "vp6f" in about("decoders").found  # CREMA-D's


def test_a_library_that_hangs_is_named_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = _Library("numpy", "import signal; signal.pause()", True, "arrays", "mend it so")
    monkeypatch.setattr(room, "PROBE_TIMEOUT_S", 2)
    monkeypatch.setattr(room, "_LIBRARY_GROUPS", ((stuck, OTHER),))
    assert "within 2 s" in about("numpy").found
    assert about("pyarrow").ok is not None


def test_what_a_library_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    loud = _Library("numpy", "print('[null, 1]'); raise OSError('gone')", True, "arrays", "mend it so")
    monkeypatch.setattr(room, "_LIBRARY_GROUPS", ((loud,),))
    assert "OSError: gone" in about("numpy").found


def test_each_library_that_must_be_there_is_one_that_is_installed_with_the_package() -> None:
    promised = {re.split(r"[^\w-]", line)[0] for line in requires("avdata") or () if "extra ==" not in line}
    needed = {library.name for chain in TRUE_CHAINS for library in chain if library.needed}
    assert needed <= promised
    assert {"torch", "torchvision", "av", "pyarrow"} <= needed
