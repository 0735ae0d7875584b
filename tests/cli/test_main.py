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
from support.in_process import avdata
from support.trees import digest_tree

from avdata.cli.console import _LogHandler, run_command
from avdata.cli.main import app as avdata_app
from avdata.errors import AvdataError
from avdata.recipe import recipe_names
from avdata.storage.atomic import atomic_write
from avdata.testing.mock_dataset import create_mock_dataset


def test_help_and_import_load_no_heavy_packages() -> None:
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
    command = [sys.executable, "-m", "avdata.cli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    for command in ("recipes", "info", "prepare", "verify", "inspect", "mock"):
        assert command in shown.stdout


def test_import_works_with_broken_torchaudio_torchvision_and_decord() -> None:
    code = (
        "import sys; sys.modules.update(torchaudio=None, torchvision=None, decord=None);"
        "import avdata, avdata.features.extract, avdata.pipeline.shard_job, avdata.streaming.dataset;"
        "print(avdata.prepare, avdata.open)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_function_remains_callable_after_module_import() -> None:
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
def test_info_shows_license_and_splits(name: str) -> None:
    facts = json.loads(avdata("info", name, "--json").stdout)
    assert facts["license"]["publish"] in {"yes", "no"}
    assert facts["default_split"] in facts["splits"]
    plain = avdata("info", name)
    assert plain.returncode == 0
    assert "prepared shards may be published" in plain.stdout


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["prepare", "crema", "--output", "o"], 2, "Did you mean 'cremad'?"),
        (
            ["prepare", "cremad", "--source", ".", "--output", "o", "--preset", "snergy"],
            2,
            "Did you mean 'snnergy'?",
        ),
        (
            ["prepare", "cremad", "--source", ".", "--output", "o", "--set", "video.num_framez=8"],
            2,
            "video.num_frames",
        ),
        (
            ["prepare", "cremad", "--source", ".", "--output", "o", "--set", "video.num_frames"],
            2,
            "section.key=value",
        ),
        (
            ["prepare", "cremad", "--source", ".", "--output", "o", "--set", "video.num_frames=x"],
            2,
            "video.num_frames",
        ),
        (["prepare", "cremad", "--source", ".", "--output", "o", "--split-by", "actor"], 2, "speaker"),
        (
            ["prepare", "cremad", "--source", ".", "--output", "o", "--audio-source", "mp3"],
            2,
            "auto, wav, container",
        ),
        (["prepare", "cremad", "--source", "nowhere", "--output", "o"], 1, "nowhere does not exist"),
        (["prepare", "cremad"], 2, "--output"),
        (["verify", "nowhere"], 1, "the folder does not exist"),
        (["inspect", "nowhere"], 1, "not a prepared dataset"),
    ],
)
def test_error_prints_one_message_and_its_exit_code(words: list[str], code: int, expected: str) -> None:
    done = avdata(*words)
    assert done.returncode == code
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "avdata.cli", "--debug", "verify", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_prepare_dry_run_prints_plan_and_writes_nothing(cremad_mock: Path, tmp_path: Path) -> None:
    done = avdata(
        "prepare", "cremad", "--source", cremad_mock, "--output", tmp_path / "out", "--dry-run", "--json"
    )
    plan = json.loads(done.stdout)
    assert (plan["clips"], plan["shards"], plan["quarantine"]) == (14, 3, {})
    assert sum(plan["splits"]["train"].values()) == 6
    assert plan["bytes"] > 0
    assert not (tmp_path / "out").exists()


def test_prepare_exits_with_3_above_max_quarantine(cremad_bad: Path, tmp_path: Path) -> None:
    words = [
        "prepare",
        "cremad",
        "--source",
        cremad_bad,
        "--output",
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


def test_verify_and_inspect_do_not_change_the_dataset(cremad_set: Path, tmp_path: Path) -> None:
    before = digest_tree(cremad_set)
    assert json.loads(avdata("verify", cremad_set, "--json").stdout)["ok"] is True
    shown = avdata("inspect", cremad_set, "--save-png", tmp_path / "a.png")
    assert shown.returncode == 0
    assert "audio offset" in shown.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    unknown = avdata("inspect", cremad_set, "1001_XXX")
    assert unknown.returncode == 2
    assert digest_tree(cremad_set) == before


@pytest.mark.parametrize("place", [".", "folder"])
def test_atomic_write_rejects_a_directory(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with contextlib.chdir(tmp_path), pytest.raises(AvdataError, match="cannot be written"):
        atomic_write(Path(place), b"")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_mock_over_an_earlier_mock_equals_a_new_one(tmp_path: Path) -> None:
    for folder, runs in ((tmp_path / "twice", (True, False)), (tmp_path / "once", (False,))):
        for bad in runs:
            create_mock_dataset("cremad", folder, clips=2, bad=bad)
    assert digest_tree(tmp_path / "twice") == digest_tree(tmp_path / "once")


def test_mock_rejects_a_directory_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    done = avdata("mock", "cremad", "--output", tmp_path)
    assert done.returncode == 1
    assert "not a mock" in done.stderr


def exit_code(monkeypatch: pytest.MonkeyPatch, app: typer.Typer, *words: str | Path) -> int:
    """Run a command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["avdata", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command(app)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def app_of(work: Callable[[], None]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(work)
    return app


def test_ctrl_c_prints_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_code(monkeypatch, app_of(interrupted)) == 130
    assert "error: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["verify", "nowhere"], 1, "not a prepared dataset"),
        (["info", "crema"], 2, "Unknown recipe 'crema'"),
        (["info"], 2, "missing argument"),
        (["recipes", "--frob"], 2, "no such option"),
    ],
)
def test_error_is_printed_as_json(
    words: list[str], code: int, expected: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert exit_code(monkeypatch, avdata_app, *words, "--json") == code
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert (expected in printed["error"], printed["exit_code"]) == (True, code)
    assert f"error: {printed['error']}" in shown.err


def test_os_error_prints_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "shard.tar")

    assert exit_code(monkeypatch, app_of(refused)) == 1
    assert (
        "error: shard.tar: Permission denied\nhint:  show the traceback with --debug"
        in capsys.readouterr().err
    )


def test_unexpected_exception_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        msg = "https://me:hunter2@example.org"
        raise ZeroDivisionError(msg)

    assert exit_code(monkeypatch, app_of(broken)) == 1
    shown = capsys.readouterr().err
    assert shown.endswith("ZeroDivisionError: https://example.org\n")
    assert "in broken" in shown


def test_log_handler_writes_a_warning_once_to_current_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("avdata", logging.WARNING, "", 0, "leaks", None, None)
    handler, stderr = _LogHandler(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)  # as rich does while it draws progress bars
    handler.handle(record)
    handler.handle(record)
    assert stderr.getvalue() == "warning: leaks\n"


@pytest.mark.parametrize("words", [["verify"], ["inspect"], ["report"]])
def test_path_that_is_not_utf8_prints_one_message(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert exit_code(monkeypatch, avdata_app, *words, tmp_path / "\udcff", "--json") == 2
    assert "is not UTF-8" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("setting", "expected"),
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
def test_invalid_setting_prints_one_line(
    setting: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prepare", "cremad", "--source", ".", "--output", "o", "--set", setting)
    assert exit_code(monkeypatch, avdata_app, *words) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith("error: ")
    assert expected in error


def test_unwritable_path_is_named_in_the_error(
    cremad_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for words in (
        ("inspect", cremad_set, "--save-png", tmp_path),
        ("report", cremad_set, "--output", tmp_path),
        ("mock", "cremad", "--output", tmp_path / "file" / "raw", "--clips", "1"),
        ("verify", tmp_path / "file"),
    ):
        assert exit_code(monkeypatch, avdata_app, *words) == 1
        assert str(tmp_path) in capsys.readouterr().err.splitlines()[0]


def test_verify_suggests_a_dataset_of_a_similar_name(cremad_set: Path) -> None:
    name = f"{cremad_set.name[:-1]}x"
    done = avdata("verify", cremad_set.parent / name)
    assert done.returncode == 1
    assert "the folder does not exist" in done.stderr
    assert f"Did you mean {cremad_set}?" in done.stderr


def test_mock_reports_progress_per_clip(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    create_mock_dataset("synthetic", tmp_path, clips=4, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("mock", 4, 4)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
