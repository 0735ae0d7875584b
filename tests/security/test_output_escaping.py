"""Outside data changes neither the terminal nor the meaning of what is shown."""

from __future__ import annotations

import csv
import json
import logging
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import avdata
from avdata.cli import console
from avdata.cli.main import app
from avdata.errors import escape_controls
from avdata.shards.card import dataset_card
from avdata.shards.reader import read_info
from avdata.sources.attempt_log import AttemptLog
from avdata.sources.types import TransferError
from avdata.visualization.html import web_url
from snnergy.training.evaluation import write_classes

EVIL = "HAP\x1b]0;title\x07\x1b[2J\x9b31m\r \u202egpj.exe\u2066\u200f"

MARKS = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def is_plain(text: str) -> bool:
    """Return whether a text has no control characters except line ends and tabs, and no direction marks."""
    return not any(
        char in MARKS or (unicodedata.category(char) == "Cc" and char not in "\n\t") for char in text
    )


@given(st.text() | st.text(alphabet=st.sampled_from(EVIL + MARKS)))
def test_escape_controls_leaves_plain_text(text: str) -> None:
    escaped = escape_controls(text)
    assert is_plain(escaped)
    assert escape_controls(escaped) == escaped
    assert not is_plain(text) or escaped == text


def test_every_console_function_escapes_controls(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_line(EVIL)
    console.print_note(EVIL)
    console.print_error(EVIL, EVIL)
    console.print_table(("name",), [(EVIL,)])
    console._LogHandler().emit(logging.LogRecord("avdata", logging.WARNING, "", 0, "%s", (EVIL,), None))
    captured = capsys.readouterr()
    assert is_plain(captured.out)
    assert is_plain(captured.err)
    assert captured.out.count("gpj.exe") == 2
    assert captured.err.count("gpj.exe") == 4


def test_print_json_escapes_controls_and_keeps_the_value(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({EVIL: [EVIL]})
    printed = capsys.readouterr().out
    assert is_plain(printed)
    assert json.loads(printed) == {EVIL: [EVIL]}


def test_print_json_prints_only_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"loss": float("nan"), "scores": [1.0, float("inf")]})

    def refuse(name: str) -> None:
        pytest.fail(name)

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed == {"loss": None, "scores": [1.0, None]}


def test_verify_command_escapes_a_label(
    own_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = read_info(own_set)
    info["splits"]["train"]["labels"] = {EVIL: 3}
    (own_set / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["avdata", "verify", str(own_set)])
    with pytest.raises(SystemExit):
        console.run_command(app)
    captured = capsys.readouterr()
    assert "gpj.exe" in captured.out + captured.err
    assert is_plain(captured.out + captured.err)


def test_attempt_log_escapes_controls(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "attempts.jsonl")
    log.note(EVIL, "https://example.org", 1, TransferError(EVIL), None)
    log.close()
    text = (tmp_path / "attempts.jsonl").read_text(encoding="utf-8")
    assert is_plain(text)
    assert json.loads(text)["path"] == EVIL


def test_csv_escapes_controls(tmp_path: Path) -> None:
    measured = {"samples": 4, "precision": 1.0, "recall": 0.75, "f1": None}
    write_classes(tmp_path / "classes.csv", {"per_class": {EVIL: measured}})
    text = (tmp_path / "classes.csv").read_text(encoding="utf-8")
    assert is_plain(text)
    assert list(csv.reader(text.splitlines()))[1][0] == escape_controls(EVIL)


URLS = (
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    " javascript:alert(1)",
    "data:text/html,x",
    "//x",
    "https:x",
)


@pytest.mark.parametrize("url", URLS)
def test_page_card_and_croissant_link_only_to_the_web(url: str, own_set: Path) -> None:
    info = read_info(own_set)
    info["license"].update(link=url, id="other", name="My license")
    info["source"]["homepage"] = url
    (own_set / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    page = Path(avdata.report(own_set, own_set / "report.html")).read_text(encoding="utf-8")
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value or "" for name, value in attrs if name == "href")

    Links().feed(page)
    assert links
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert f"license_link: {url}" not in dataset_card(info)
    assert f"<{url}>" not in dataset_card(info)
    assert web_url(url) is None


def test_report_links_to_the_license_on_the_web(own_set: Path) -> None:
    link = read_info(own_set)["license"]["link"]
    page = Path(avdata.report(own_set, own_set / "report.html")).read_text(encoding="utf-8")
    assert f'<a href="{link}">' in page
