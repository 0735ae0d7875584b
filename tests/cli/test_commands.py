"""Properties of all commands: help, example, width, completion and suggestions."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support import in_process
from support.command_server import CommandServer
from typer.main import get_command
from typer.testing import CliRunner

import avdata.cli
import snnergy.cli
from avdata.cli.console import command_line

BIN = Path(sys.executable).parent
NEEDS_THE_NETWORK = ("avdata download", "avdata publish", "avdata pull", "avdata manifest build")
NEEDS_MINUTES = ("snnergy reproduce",)  # see test_reproduction.py
ENV = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def commands(app: typer.Typer, name: str) -> dict[str, str]:
    """Return the example of each command by its full name."""
    examples: dict[str, str] = {}

    def walk(command: object, words: str) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            examples[words] = getattr(command, "epilog", None) or ""
        else:
            for part, child in children.items():
                walk(child, f"{words} {part}")

    walk(get_command(app), name)
    return examples


COMMANDS = commands(avdata.cli.app, "avdata") | commands(snnergy.cli.app, "snnergy")


@pytest.mark.parametrize("app", [avdata.cli.app, snnergy.cli.app])
def test_help_shows_command_summaries_completely(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2].splitlines()
    assert len(lines) > 4
    assert not [line for line in lines if line.endswith(("...", "…"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_quiet_json_and_debug_options(command: str) -> None:
    command_object = command_line(avdata.cli.app if command.startswith("avdata") else snnergy.cli.app)
    for word in command.split()[1:]:
        command_object = command_object.commands[word]
    options = {name: option.help for option in command_object.params for name in option.opts}
    assert all(options.get(name) for name in ("--quiet", "-q", "--json", "--debug"))


@pytest.mark.parametrize("app", [avdata.cli.app, snnergy.cli.app])
def test_program_has_completion_options(app: typer.Typer) -> None:
    names = {name for option in command_line(app).params for name in option.opts}
    assert {"--install-completion", "--show-completion"} <= names


def test_completion_completes_recipe_names() -> None:
    environment = {"_AVDATA_COMPLETE": "complete_bash", "COMP_WORDS": "avdata info cre", "COMP_CWORD": "2"}
    done = CliRunner().invoke(avdata.cli.app, [], prog_name="avdata", env=environment)
    assert done.output.split() == ["cremad"]


@pytest.mark.parametrize("app", [avdata.cli.app, snnergy.cli.app])
def test_version_prints_program_and_version(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"{app.info.name} {avdata.__version__}\n")


@pytest.mark.parametrize("name", ["avdata", "snnergy"])
def test_program_runs_as_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 0


@pytest.mark.parametrize("words", [["--debug", "verify", "no-dataset"], ["verify", "no-dataset", "--debug"]])
def test_debug_works_before_and_after_the_command(words: list[str]) -> None:
    done = in_process.avdata(*words)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "is not a prepared dataset" in done.stderr


@pytest.mark.parametrize("words", [["info", "cremad"], ["inspect", "DATASET"], ["manifest", "check"]])
def test_quiet_prints_nothing_on_success(words: list[str], cremad_set: Path) -> None:
    arguments = [str(cremad_set) if word == "DATASET" else word for word in words]
    done = CliRunner().invoke(avdata.cli.app, [*arguments, "--quiet"])
    assert (done.exit_code, done.output) == (0, "")


def test_info_shows_a_task_and_suggests_the_nearest_task() -> None:
    runner = CliRunner()
    assert "half is hidden" in runner.invoke(avdata.cli.app, ["info", "synthetic-agree"]).output
    with pytest.raises(avdata.AvdataError) as raised:
        runner.invoke(avdata.cli.app, ["info", "synthetic-agre"], catch_exceptions=False)
    assert raised.value.hint == "Did you mean 'agree'?"


def test_info_shows_a_recipe_file_without_manifest() -> None:
    recipe = Path(__file__).parents[2] / "docs" / "custom_recipe.py"
    done = CliRunner().invoke(avdata.cli.app, ["info", str(recipe)])
    assert done.exit_code == 0
    assert "Claps and knocks" in done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_value_option_states_its_default(command: str) -> None:
    command_object = command_line(avdata.cli.app if command.startswith("avdata") else snnergy.cli.app)
    for word in command.split()[1:]:
        command_object = command_object.commands[word]
    options = [
        part for part in command_object.params if part.param_type_name == "option" and not part.is_flag
    ]
    silent = [
        option.opts for option in options
        if not option.required and option.default is None and "(default" not in option.help
    ]  # fmt: skip
    assert silent == []
    assert [part.opts for part in options if not re.match(r"[A-Z][a-z]+ .*\.$", part.help)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help_has_an_example(command: str) -> None:
    assert COMMANDS[command].startswith(f"Example:  {command}")


@pytest.mark.pages
def test_examples_of_help_run_in_order(parts: Path, tmp_path: Path, command_server: CommandServer) -> None:
    order = ["avdata recipes", "avdata info", "avdata manifest check", "avdata mock", "avdata prepare"]
    rest = [
        name
        for name in COMMANDS
        if name not in order and not name.startswith(NEEDS_THE_NETWORK + NEEDS_MINUTES)
    ]
    (tmp_path / "train.csv").write_text("1010_IEO_ANG_LO,ANG\n")  # the published list of `avdata match`
    shutil.copytree(parts, tmp_path / "out" / "parts")  # of `avdata merge`
    for name in order + sorted(rest, key=lambda name: (name.startswith("snnergy"), name != "snnergy train")):
        example = shlex.split(COMMANDS[name].removeprefix("Example:"))
        command_server.run(example, tmp_path)


def test_tables_and_help_fit_80_columns(cremad_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = [
        ["recipes"], *(["info", name] for name in avdata.recipe_names()),
        ["inspect", str(cremad_set)], ["manifest", "check"], ["prepare", "--help"], ["report", "--help"],
    ]  # fmt: skip
    for words in commands:
        done = CliRunner().invoke(avdata.cli.app, words, catch_exceptions=False)
        assert 0 < max(map(len, done.output.splitlines())) <= 80, words


def test_output_has_no_colors_without_terminal(cremad_set: Path) -> None:
    for words in (["recipes"], ["verify", str(cremad_set)], ["info", "nothing"]):
        done = subprocess.run(["avdata", *words], env=ENV, capture_output=True, text=True, check=False)
        assert "\x1b" not in done.stdout + done.stderr


def test_progress_prints_one_line_per_tenth_without_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from avdata.cli import console

    with pytest.MonkeyPatch.context() as patch:
        clock = [0.0]
        patch.setattr("time.monotonic", lambda: clock[0])
        show = console._ProgressLines("{:,.0f}".format)
        for done in range(1001):
            clock[0] += 1
            show("prepare", done, 1000)
        # A run that resumes at 500 and a later stage have their own clocks.
        for done in range(500, 1001, 5):
            clock[0] += 1
            show("verify", done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 + 5
    assert all(re.fullmatch(r"prepare: [\d,]+/1,000, 1/s, .* left", line) for line in lines[:10])
    assert all(re.fullmatch(r"verify: [\d,]+/1,000, 5/s, .* left", line) for line in lines[10:])
    assert lines[10].endswith("600/1,000, 5/s, 80 s left")


def test_progress_shows_bytes_and_the_host_of_a_download(capsys: pytest.CaptureFixture[str]) -> None:
    from avdata.cli import console

    with pytest.MonkeyPatch.context() as patch:
        clock = [0.0]
        patch.setattr("time.monotonic", lambda: clock[0])
        show = console._ProgressLines("{:,.0f}".format)
        show.describe("fetching", "1/9 files from example.org, 3 waiting")
        for done in (0, 500_000):
            show("fetching", done, 1_000_000)
            clock[0] += 5
    expected = "fetching: 500 kB/1 MB, 100 kB/s, 5 s left (1/9 files from example.org, 3 waiting)\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["info", "crema"], "Did you mean 'cremad'?"),
        (["mock", "cremda", "-o", "x"], "Did you mean 'cremad'?"),
        (["download", "urbansound8kav", "--dry-run"], "Did you mean 'urbansound8k-av'?"),
        (["reprot"], "hint:  Did you mean 'report'?"),
        (["prepare", "ave", "--output", "o", "--sorce", "x"], "hint:  Did you mean '--source'?"),
    ],
)
def test_misspelled_name_gets_a_suggestion(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = in_process.avdata(*words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("Did you mean") == 1
    assert "Possible options" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_verify_suggests_the_dataset_inside_a_directory(cremad_set: Path) -> None:
    done = in_process.avdata("verify", cremad_set.parent)
    assert done.returncode == 1
    assert f"Did you mean {cremad_set}?" in "".join(done.stderr.splitlines())


@pytest.mark.parametrize("recipe", ["synthetic", "custom_recipe.py"])
def test_mock_prints_a_prepare_command_that_works(recipe: str, tmp_path: Path) -> None:
    name = recipe if recipe == "synthetic" else str(Path(__file__).parents[2] / "docs" / recipe)
    runner, out = CliRunner(), tmp_path / "a name's dataset"
    printed = runner.invoke(
        avdata.cli.app, ["mock", name, "-o", str(tmp_path / "raw clips"), "--clips", "4"]
    ).output
    typed = shlex.split(
        printed.partition("Prepare it with: avdata ")[2].replace("DATASET", shlex.quote(str(out)))
    )
    done = runner.invoke(avdata.cli.app, [*typed, "--workers", "0"])
    assert done.exit_code == 0, done.output
    typed = shlex.split(done.output.partition("Inspect them with: avdata ")[2].splitlines()[0])
    assert typed == ["report", str(out)]
