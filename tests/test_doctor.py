from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import avdata.doctor as room
from avdata.cli import app
from avdata.doctor import _Library, examine

WHOLE = _Library("numpy", "import numpy", True, "arrays", "pip install numpy")


@pytest.fixture(autouse=True)
def _few_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LIBRARIES", (WHOLE,))


def about(name: str) -> room.Finding:
    return next(one for one in examine() if one.name == name)


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
    monkeypatch.setattr(room, "_LIBRARIES", (_Library("numpy", proof, True, "arrays", "mend it so"),))
    found = about("numpy")
    assert found.ok is False
    assert said in found.found
    assert found.advice == "mend it so"
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_a_library_that_is_not_needed_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = _Library("no-such-library", "", False, "nothing", "pip install it")
    monkeypatch.setattr(room, "_LIBRARIES", (WHOLE, absent))
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


def test_the_true_list_proves_what_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    names = [library.name for library in room._LIBRARIES]
    assert {"torch", "torchvision", "torchaudio", "av", "decord", "soundfile"} <= set(names)
