from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from trees import digest_tree

from avdata.terminal import run_command


def avdata(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "avdata.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = {
        "torch",
        "numpy",
        "pandas",
        "pyarrow",
        "librosa",
        "torchaudio",
        "torchvision",
        "decord",
        "matplotlib",
        "pydantic",
        "av",
    }
    code = "import sys, avdata, avdata.cli; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not heavy & set(loaded)
    shown = avdata("--help")
    assert shown.returncode == 0
    for command in ("recipes", "info", "prepare", "verify", "inspect", "mock"):
        assert command in shown.stdout


def test_avdata_works_where_torchaudio_torchvision_and_decord_are_broken() -> None:
    code = (
        "import sys; sys.modules.update(torchaudio=None, torchvision=None, decord=None);"
        "import avdata, avdata.features, avdata.job, avdata.stream; print(avdata.prepare, avdata.open)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_door_stays_a_function_when_its_module_is_imported() -> None:
    code = "import avdata.prepare, avdata.verify, avdata as a; print(callable(a.prepare), callable(a.verify))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_there_are_four_recipes() -> None:
    shown = json.loads(avdata("recipes", "--json").stdout)
    assert [row["name"] for row in shown] == ["ave", "cremad", "synthetic", "urbansound8k-av"]


@pytest.mark.parametrize("name", ["ave", "cremad", "synthetic", "urbansound8k-av"])
def test_info_says_what_may_be_published(name: str) -> None:
    said = json.loads(avdata("info", name, "--json").stdout)
    assert said["licence"]["publish"] in {"yes", "no"}
    assert said["default_split"] in said["splits"]
    plain = avdata("info", name)
    assert plain.returncode == 0
    assert "publishing prepared shards" in plain.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["prepare", "crema", "--out", "o"], 2, "did you mean cremad?"),
        (
            ["prepare", "cremad", "--source", ".", "--out", "o", "--preset", "snergy"],
            2,
            "did you mean snnergy?",
        ),
        (["prepare", "cremad", "--source", ".", "--out", "o", "--set", "video.framez=8"], 2, "video.frames"),
        (
            ["prepare", "cremad", "--source", ".", "--out", "o", "--set", "video.frames"],
            2,
            "section.key=value",
        ),
        (["prepare", "cremad", "--source", ".", "--out", "o", "--set", "video.frames=x"], 2, "video.frames"),
        (["prepare", "cremad", "--source", ".", "--out", "o", "--split-by", "actor"], 2, "speaker"),
        (["prepare", "cremad", "--source", ".", "--out", "o", "--audio", "mp3"], 2, "audio.source"),
        (["prepare", "cremad", "--source", "nowhere", "--out", "o"], 1, "nowhere does not exist"),
        (["prepare", "cremad"], 2, "--out"),
        (["verify", "nowhere"], 1, "not a prepared set"),
        (["inspect", "nowhere"], 1, "not a prepared set"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_its_exit_code(words: list[str], code: int, said: str) -> None:
    done = avdata(*words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in avdata("--debug", "verify", "nowhere").stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(cremad_mock: Path, tmp_path: Path) -> None:
    done = avdata(
        "prepare", "cremad", "--source", cremad_mock, "--out", tmp_path / "out", "--dry-run", "--json"
    )
    said = json.loads(done.stdout)
    assert (said["clips"], said["shards"], said["quarantine"]) == (14, 3, {})
    assert sum(said["splits"]["train"].values()) == 6
    assert said["bytes"] > 0
    assert not (tmp_path / "out").exists()


def test_too_many_left_out_is_exit_code_3_unless_allowed(cremad_bad: Path, tmp_path: Path) -> None:
    words = [
        "prepare",
        "cremad",
        "--source",
        cremad_bad,
        "--out",
        tmp_path / "out",
        "--workers",
        "0",
        "--set",
        "video.size=32",
    ]
    done = avdata(*words)
    assert done.returncode == 3
    assert "quarantine.parquet" in done.stderr
    allowed = avdata(*words, "--max-quarantine", "0.9", "--json")
    assert allowed.returncode == 0
    assert json.loads(allowed.stdout)["quarantine"]["lfs_pointer"] == 1


def test_verify_and_inspect_a_set(cremad_set: Path, tmp_path: Path) -> None:
    before = digest_tree(cremad_set)
    assert json.loads(avdata("verify", cremad_set, "--json").stdout)["ok"] is True
    shown = avdata("inspect", cremad_set, "--save-png", tmp_path / "a.png")
    assert shown.returncode == 0
    assert "av_offset" in shown.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    unknown = avdata("inspect", cremad_set, "1001_XXX")
    assert unknown.returncode == 2
    assert digest_tree(cremad_set) == before


def test_a_mock_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    done = avdata("mock", "cremad", tmp_path)
    assert done.returncode == 1
    assert "not a mock" in done.stderr


def test_ctrl_c_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["avdata"])
        with pytest.raises(SystemExit) as ended:
            run_command(app)
    assert ended.value.code == 1
    assert "error: stopped" in capsys.readouterr().err
