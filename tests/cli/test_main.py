from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from support.trees import digest_tree

from avdata.cli.console import _LogHandler, run_command
from avdata.cli.main import app as whole_app
from avdata.errors import AvdataError
from avdata.recipe import recipe_names
from avdata.storage.atomic import atomic_write
from avdata.testing.mock_dataset import create_mock_dataset


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
        "import avdata, avdata.features.extract, avdata.pipeline.shard_job, avdata.streaming.dataset;"
        "print(avdata.prepare, avdata.open)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_door_stays_a_function_when_its_module_is_imported() -> None:
    code = (
        "import avdata.pipeline.prepare, avdata.shards.verify, avdata as a;"
        "print(callable(a.prepare), callable(a.verify))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_recipes_lists_every_recipe() -> None:
    shown = json.loads(avdata("recipes", "--json").stdout)
    assert [row["name"] for row in shown] == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_info_says_what_may_be_published(name: str) -> None:
    said = json.loads(avdata("info", name, "--json").stdout)
    assert said["license"]["publish"] in {"yes", "no"}
    assert said["default_split"] in said["splits"]
    plain = avdata("info", name)
    assert plain.returncode == 0
    assert "publishing prepared shards" in plain.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["prepare", "crema", "--out", "o"], 2, "Did you mean 'cremad'?"),
        (
            ["prepare", "cremad", "--source", ".", "--out", "o", "--preset", "snergy"],
            2,
            "Did you mean 'snnergy'?",
        ),
        (
            ["prepare", "cremad", "--source", ".", "--out", "o", "--set", "video.num_framez=8"],
            2,
            "video.num_frames",
        ),
        (
            ["prepare", "cremad", "--source", ".", "--out", "o", "--set", "video.num_frames"],
            2,
            "section.key=value",
        ),
        (
            ["prepare", "cremad", "--source", ".", "--out", "o", "--set", "video.num_frames=x"],
            2,
            "video.num_frames",
        ),
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


@pytest.mark.parametrize("place", [".", "folder"])
def test_a_page_that_would_be_a_folder_is_refused_in_a_sentence(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with contextlib.chdir(tmp_path), pytest.raises(AvdataError, match="cannot be written"):
        atomic_write(Path(place), b"")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_mock_over_an_earlier_one_is_the_mock_that_a_new_folder_would_hold(tmp_path: Path) -> None:
    for folder, made in ((tmp_path / "twice", (True, False)), (tmp_path / "once", (False,))):
        for bad in made:
            create_mock_dataset("cremad", folder, clips=2, bad=bad)
    assert digest_tree(tmp_path / "twice") == digest_tree(tmp_path / "once")


def test_a_mock_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    done = avdata("mock", "cremad", tmp_path)
    assert done.returncode == 1
    assert "not a mock" in done.stderr


def ends(monkeypatch: pytest.MonkeyPatch, app: typer.Typer, *words: str | Path) -> int:
    """The exit code of a command line run in this process."""
    monkeypatch.setattr(sys, "argv", ["avdata", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command(app)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def app_of(work: Callable[[], None]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(work)
    return app


def test_ctrl_c_ends_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert ends(monkeypatch, app_of(interrupted)) == 1
    assert "error: stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["verify", "nowhere"], 1, "not a prepared set"),
        (["info", "crema"], 2, "Unknown recipe 'crema'"),
        (["info"], 2, "missing argument"),
        (["recipes", "--frob"], 2, "no such option"),
    ],
)
def test_for_machines_an_error_is_json_too(
    words: list[str], code: int, said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert ends(monkeypatch, whole_app, *words, "--json") == code
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert (said in told["error"], told["exit_code"]) == (True, code)
    assert f"error: {told['error']}" in shown.err


def test_what_the_machine_refuses_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "shard.tar")

    assert ends(monkeypatch, app_of(refused)) == 1
    assert "error: shard.tar: Permission denied\nhint:  --debug" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["avdata"])
    with pytest.raises(ZeroDivisionError):
        run_command(app_of(broken))


def test_a_warning_is_said_once_and_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("avdata", logging.WARNING, "", 0, "leaks", None, None)
    handler, stderr = _LogHandler(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)  # as rich does while it draws
    handler.handle(record)
    handler.handle(record)
    assert stderr.getvalue() == "warning: leaks\n"


@pytest.mark.parametrize("words", [["verify"], ["inspect"], ["report"]])
def test_a_name_that_is_not_utf8_is_one_sentence(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ends(monkeypatch, whole_app, *words, tmp_path / "\udcff", "--json") == 2
    assert "is not UTF-8" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("video=5", "video is a section, not a setting"),
        ("video.size=[1", "the value is not YAML (line 1"),
        ("align.seconds=.inf", "a finite number"),
        ("align.seconds=1e9", "less than or equal to 3600"),
        ("audio.amin=1e-50", "at least 1e-37"),
        ("audio={layout: repeat, resize: [0, 64]}", "greater than 0"),
        ("audio.power=60", "less than or equal to 4"),
        ("audio.fmin=9000", "audio.fmin 9000 is not below half of audio.sample_rate, 8000"),
        ("video={num_frames: 32, size: 2048}", "65,536 pixels wide"),
    ],
)
def test_a_bad_setting_is_one_line(
    setting: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prepare", "cremad", "--source", ".", "--out", "o", "--set", setting)
    assert ends(monkeypatch, whole_app, *words) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith("error: ")
    assert said in error


def test_places_that_cannot_be_written_are_named(
    cremad_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for words in (
        ("inspect", cremad_set, "--save-png", tmp_path),
        ("report", cremad_set, "--to", tmp_path),
        ("mock", "cremad", tmp_path / "file" / "raw", "--clips", "1"),
        ("verify", tmp_path / "file"),
    ):
        assert ends(monkeypatch, whole_app, *words) == 1
        assert str(tmp_path) in capsys.readouterr().err.splitlines()[0]
