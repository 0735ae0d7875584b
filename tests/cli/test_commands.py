"""What is true of every command: its help, its example, its width."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import avdata.cli
import snnergy.cli
from avdata.cli.console import command_line

BIN = Path(sys.executable).parent
NEEDS_THE_NETWORK = ("avdata download", "avdata publish", "avdata pull", "avdata manifest build")
ENV = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def commands(app: typer.Typer, name: str) -> dict[str, str]:
    """The example of each command, by its whole name."""
    found: dict[str, str] = {}

    def walk(command: object, words: str) -> None:
        held = getattr(command, "commands", None)
        if held is None:
            found[words] = getattr(command, "epilog", None) or ""
        else:
            for part, child in held.items():
                walk(child, f"{words} {part}")

    walk(get_command(app), name)
    return found


COMMANDS = commands(avdata.cli.app, "avdata") | commands(snnergy.cli.app, "snnergy")


@pytest.mark.parametrize("app", [avdata.cli.app, snnergy.cli.app])
def test_the_list_of_commands_cuts_no_sentence_short(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2].splitlines()
    assert len(lines) > 4
    assert not [line for line in lines if line.endswith(("...", "…"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet_speak_to_machines_and_show_a_traceback(command: str) -> None:
    found = command_line(avdata.cli.app if command.startswith("avdata") else snnergy.cli.app)
    for word in command.split()[1:]:
        found = found.commands[word]
    options = {name: option.help for option in found.params for name in option.opts}
    assert all(options.get(name) for name in ("--quiet", "-q", "--json", "--debug"))


@pytest.mark.parametrize("app", [avdata.cli.app, snnergy.cli.app])
def test_both_programs_complete_what_is_typed(app: typer.Typer) -> None:
    names = {name for option in command_line(app).params for name in option.opts}
    assert {"--install-completion", "--show-completion"} <= names


def test_the_shell_completes_a_recipes_name() -> None:
    asked = {"_AVDATA_COMPLETE": "complete_bash", "COMP_WORDS": "avdata info cre", "COMP_CWORD": "2"}
    done = CliRunner().invoke(avdata.cli.app, [], prog_name="avdata", env=asked)
    assert done.output.split() == ["cremad"]


@pytest.mark.parametrize("app", [avdata.cli.app, snnergy.cli.app])
def test_both_programs_say_their_version(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"{app.info.name} {avdata.__version__}\n")


@pytest.mark.parametrize("name", ["avdata", "snnergy"])
def test_both_programs_run_as_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 0


@pytest.mark.parametrize("words", [["--debug", "verify", "no-set"], ["verify", "no-set", "--debug"]])
def test_debug_is_understood_before_and_behind_the_command(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["avdata", *words], cwd=tmp_path, env=ENV, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "is not a prepared set" in done.stderr


@pytest.mark.parametrize("words", [["info", "cremad"], ["inspect", "SET"], ["manifest", "check"]])
def test_quiet_says_nothing_where_all_is_well_and_nobody_asked(words: list[str], cremad_set: Path) -> None:
    asked = [str(cremad_set) if word == "SET" else word for word in words]
    done = CliRunner().invoke(avdata.cli.app, [*asked, "--quiet"])
    assert (done.exit_code, done.output) == (0, "")


def test_a_task_of_a_recipe_has_its_page_and_the_nearest_is_named() -> None:
    runner = CliRunner()
    assert "half is hidden" in runner.invoke(avdata.cli.app, ["info", "synthetic-agree"]).output
    with pytest.raises(avdata.AvdataError) as told:
        runner.invoke(avdata.cli.app, ["info", "synthetic-agre"], catch_exceptions=False)
    assert told.value.hint == "Did you mean 'agree'?"


def test_a_recipe_of_ones_own_has_its_page_without_a_manifest() -> None:
    own = Path(__file__).parents[2] / "docs" / "own_recipe.py"
    done = CliRunner().invoke(avdata.cli.app, ["info", str(own)])
    assert done.exit_code == 0
    assert "Claps and knocks" in done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_ends_with_an_example_of_it(command: str) -> None:
    assert COMMANDS[command].startswith(f"Example:  {command}")


@pytest.mark.pages
def test_the_examples_work_when_pasted_one_after_the_other(tmp_path: Path) -> None:
    order = ["avdata recipes", "avdata info", "avdata manifest check", "avdata mock", "avdata prepare"]
    rest = [name for name in COMMANDS if name not in order and not name.startswith(NEEDS_THE_NETWORK)]
    for name in order + sorted(rest, key=lambda name: (name.startswith("snnergy"), name != "snnergy train")):
        example = shlex.split(COMMANDS[name].removeprefix("Example:"))
        done = subprocess.run(
            example, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (example, done.stdout, done.stderr)


def test_tables_and_help_fit_80_columns(cremad_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = [
        ["recipes"], *(["info", name] for name in avdata.recipe_names()),
        ["inspect", str(cremad_set)], ["manifest", "check"], ["prepare", "--help"], ["report", "--help"],
    ]  # fmt: skip
    for words in asked:
        done = CliRunner().invoke(avdata.cli.app, words, catch_exceptions=False)
        assert 0 < max(map(len, done.output.splitlines())) <= 80, words


def test_colours_are_for_terminals_only(cremad_set: Path) -> None:
    for words in (["recipes"], ["verify", str(cremad_set)], ["info", "nothing"]):
        done = subprocess.run(["avdata", *words], env=ENV, capture_output=True, text=True, check=False)
        assert "\x1b" not in done.stdout + done.stderr


def test_the_readers_of_logs_get_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    from avdata.cli import console as terminal

    with pytest.MonkeyPatch.context() as patch:
        clock = [0.0]
        patch.setattr("time.monotonic", lambda: clock[0])
        show = terminal._progress_lines("{:,.0f}".format)
        for done in range(1001):
            clock[0] += 1
            show("prepare", done, 1000)
        # A run that goes on at 500, and a stage after it, have clocks of their own.
        for done in range(500, 1001, 5):
            clock[0] += 1
            show("verify", done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 + 5
    assert all(re.fullmatch(r"prepare: [\d,]+/1,000, 1/s, .* left", line) for line in lines[:10])
    assert all(re.fullmatch(r"verify: [\d,]+/1,000, 5/s, .* left", line) for line in lines[10:])
    assert lines[10].endswith("600/1,000, 5/s, 80 s left")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["avdata", "info", "crema"], "Did you mean 'cremad'?"),
        (["avdata", "mock", "cremda", "x"], "Did you mean 'cremad'?"),
        (["avdata", "download", "urbansound8k", "--dry-run"], "Did you mean 'urbansound8k-av'?"),
        (["avdata", "reprot"], "report"),
        (["avdata", "prepare", "ave", "--out", "o", "--sorce", "x"], "--source"),
    ],
)
def test_the_nearest_right_name_is_suggested(words: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(words, cwd=tmp_path, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_of_sets_names_the_set_that_was_meant(cremad_set: Path) -> None:
    words = ["avdata", "verify", str(cremad_set.parent)]
    done = subprocess.run(words, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"did you mean {cremad_set}?" in "".join(done.stderr.splitlines())


@pytest.mark.parametrize("recipe", ["synthetic", "own_recipe.py"])
def test_what_mock_says_to_type_next_works(recipe: str, tmp_path: Path) -> None:
    name = recipe if recipe == "synthetic" else str(Path(__file__).parents[2] / "docs" / recipe)
    runner, out = CliRunner(), tmp_path / "a name's set"
    said = runner.invoke(avdata.cli.app, ["mock", name, str(tmp_path / "raw clips"), "--clips", "4"]).output
    typed = shlex.split(
        said.partition("prepare it with: avdata ")[2].replace("PREPARED", shlex.quote(str(out)))
    )
    done = runner.invoke(avdata.cli.app, [*typed, "--workers", "0"])
    assert done.exit_code == 0, done.output
    typed = shlex.split(done.output.partition("look at them with: avdata ")[2].splitlines()[0])
    assert typed == ["report", str(out)]
