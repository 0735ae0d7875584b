"""Options whose values are the names of tables: their help, their errors, and what they import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import avdata.cli
import snnergy.cli
from avdata.cli.options import load_choices, parse_task_options
from avdata.errors import UsageError
from avdata.recipe import load_recipe
from avdata.shards.reader import read_info

APPS = {"avdata": avdata.cli.app, "snnergy": snnergy.cli.app}

CHOICES = [
    ("avdata", "prepare", "--preset", "snergy", "snnergy"),
    ("avdata", "prepare", "--engine", "rai", "ray"),
    ("avdata", "prepare", "--audio-source", "wave", "wav"),
    ("avdata", "prepare", "--group-leakage", "drop", "drop-train"),
    ("avdata", "prepare", "--export", "ogmge", "ogm-ge"),
    ("avdata", "export", "--media", "mp5", "mp4"),
    ("snnergy", "train", "--train-preset", "quik", "quick"),
    ("snnergy", "train", "--model", "nan", "nano"),
    ("snnergy", "train", "--fusion", "cmkqa", "cmqka"),
    ("snnergy", "train", "--device", "cud", "cuda"),
]
"""Program, command, option, a misspelled value and the correct one."""


def option(program: str, command: str, name: str) -> Any:
    commands: Any = get_command(APPS[program])
    return next(param for param in commands.commands[command].params if name in param.opts)


def text_of(help: str) -> str:
    """Return a help text without its line breaks."""
    return re.sub(r"\s+", " ", help)


@pytest.mark.parametrize(("program", "command", "name", "wrong", "right"), CHOICES)
def test_choice_is_listed_in_help(program: str, command: str, name: str, wrong: str, right: str) -> None:
    (reference,) = re.findall(r"\{([\w.]+:[\w.]+)\}", option(program, command, name).help)
    names = load_choices(reference)
    assert right in names
    shown = CliRunner().invoke(APPS[program], [command, "--help"], catch_exceptions=False)
    assert ", ".join(names) in text_of(shown.output)


@pytest.mark.parametrize(("program", "command", "name", "wrong", "right"), CHOICES)
def test_choice_rejects_an_unknown_value(
    program: str, command: str, name: str, wrong: str, right: str
) -> None:
    words = [command, "cremad", "--output", "o", name, wrong]
    with pytest.raises(UsageError, match=f"unknown value of {name}: '{wrong}'") as raised:
        CliRunner().invoke(APPS[program], words, catch_exceptions=False)
    assert right in str(raised.value.hint)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("command", ["prepare", "download"])
def test_split_by_lists_the_split_schemes_in_help(command: str) -> None:
    shown = CliRunner().invoke(avdata.cli.app, [command, "--help"], catch_exceptions=False)
    assert "official, speaker, ogmge, fold:K" in text_of(shown.output)


def test_parse_task_options_keeps_equals_signs_and_the_last_value() -> None:
    assert parse_task_options(["a=b=c", "labels=x,y", "a=", "b="]) == {"a": "", "labels": "x,y", "b": ""}


@pytest.mark.parametrize("text", ["label", "=cls", ""])
def test_parse_task_options_rejects_other_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"the form is NAME=VALUE"):
        parse_task_options([text])


def test_prepare_passes_task_options_to_the_recipe(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for words in (
        ["mock", "webdataset", "-o", str(raw), "--clips", "4"],
        ["prepare", "webdataset", "--source", str(raw), "-o", str(out), "--workers", "0", "--set",
         "video.size=32", "--task-option", "label=json:speaker", "--task-option", "split=test"],
    ):  # fmt: skip
        done = CliRunner().invoke(APPS["avdata"], words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    info = read_info(out)
    assert info["config"]["select"]["task_options"] == {"label": "json:speaker", "split": "test"}
    assert (info["labels"], list(info["splits"])) == (["s0", "s1", "s2", "s3"], ["test"])


def test_info_lists_the_task_options_of_a_recipe() -> None:
    shown = CliRunner().invoke(APPS["avdata"], ["info", "webdataset"], catch_exceptions=False)
    options = load_recipe("webdataset").options
    assert options
    for name, text in options.items():
        assert f"{name}: {text}" in text_of(shown.output)
    other = CliRunner().invoke(APPS["avdata"], ["info", "cremad"], catch_exceptions=False)
    assert "task options" not in other.output


def test_compare_help_names_its_default_fusions() -> None:
    from snnergy.analysis.comparison import DEFAULT_FUSIONS

    shown = CliRunner().invoke(snnergy.cli.app, ["compare", "--help"], catch_exceptions=False)
    assert f"(default: {', '.join(DEFAULT_FUSIONS)})" in text_of(shown.output)


@pytest.mark.parametrize(
    "words", ["avdata prepare", "avdata export", "snnergy train", "snnergy compare", "snnergy evaluate"]
)
def test_command_help_does_not_load_torch(words: str) -> None:
    program, command = words.split()
    code = (
        f"import sys, {program}.cli\n"
        f"try: {program}.cli.app([{command!r}, '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


LOCAL_OUTPUTS = [
    (program, name)
    for program, app in APPS.items()
    for name, command in sorted(get_command(app).commands.items())  # type: ignore[attr-defined]
    if any("--output" in param.opts for param in command.params) and (program, name) != ("avdata", "prepare")
]
"""Commands that write to this machine only."""


@pytest.mark.parametrize(("program", "command"), LOCAL_OUTPUTS)
def test_local_output_refuses_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    params = get_command(APPS[program]).commands[command].params  # type: ignore[attr-defined]
    required = [param for param in params if param.required and "--output" not in param.opts]
    words = [
        word
        for param in required
        for word in (["x"] if param.param_type_name == "argument" else [param.opts[0], "x"])
    ]
    result = CliRunner().invoke(APPS[program], [command, *words, "--output", "s3://user:secret@bucket/set"])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith("Cannot write to a URL here: s3://bucket/set.")
    assert list(tmp_path.iterdir()) == []


def test_commands_with_a_local_output_are_found() -> None:
    assert {("avdata", "download"), ("avdata", "export"), ("snnergy", "train")} < set(LOCAL_OUTPUTS)
