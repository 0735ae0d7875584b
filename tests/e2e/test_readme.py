"""The README: its commands run, its links and tables are those of the project."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from support.command_server import CommandServer
from typer.main import get_command
from typer.testing import CliRunner

import avdata.cli
import snnergy.cli
from avdata.config.schema import AlignConfig, setting_names
from avdata.errors import QuarantineReason
from avdata.recipe import load_recipe

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOB = "https://github.com/avdata/avdata/blob/main/"
RAW = "https://raw.githubusercontent.com/avdata/avdata/main/"
RUN_BLOCKS = "import sys\nfor text in sys.argv[1:]: exec(text, {'__name__': '__main__'})"


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


@pytest.mark.pages
def test_readme_commands_run_in_order(tmp_path: Path, command_server: CommandServer) -> None:
    quick_start, inspecting, training = blocks("bash")
    assert len(quick_start.splitlines()) == 6
    for line in (quick_start + inspecting).splitlines():
        command_server.run(shlex.split(line), tmp_path)
    command_server.run(["python", "-c", RUN_BLOCKS, *blocks("python")], tmp_path)
    for line in training.splitlines():
        command_server.run(shlex.split(line), tmp_path)
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.pages
def test_alignment_commands_write_the_image(tmp_path: Path, command_server: CommandServer) -> None:
    (commands,) = blocks("bash", ROOT / "docs" / "alignment.md")
    for line in commands.splitlines():
        command_server.run(shlex.split(line), tmp_path)
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_alignment_page_names_existing_settings_and_reasons() -> None:
    text = (ROOT / "docs" / "alignment.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:align|audio|video|quality)\.[a-z_]+)", text))
    assert named <= set(setting_names())
    windows = re.findall(r"^\| `([a-z]+)` \|", text.partition("`align.window`")[2].partition("\n\n")[0], re.M)
    assert set(windows) == set(get_args(AlignConfig.model_fields["window"].annotation))
    quarantine = text.partition("## Quarantine")[2].partition("Clipped")[0]
    reasons = set(re.findall(r"`([a-z]+_[a-z]+)`", quarantine))
    assert reasons
    assert reasons <= {reason.value for reason in QuarantineReason}


def test_readme_links_are_absolute_and_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert [link for link in links if not link.startswith("https://")] == []  # PyPI shows this page too
    own = [link.removeprefix(BLOB).removeprefix(RAW) for link in links if link.startswith((BLOB, RAW))]
    assert len(own) > 30
    assert [link for link in own if not (ROOT / link).is_file()] == []


def test_readme_links_every_page_or_its_index() -> None:
    linked = set(re.findall(rf"\]\({re.escape(BLOB)}(docs/[^)#]+)\)", TEXT))
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")}
    # Decisions are listed by their index.
    assert pages - linked - {page for page in pages if page.startswith("docs/decisions/")} == set()


def test_readme_image_is_small() -> None:
    assert f"]({RAW}docs/report.jpg)" in TEXT
    assert 10_000 < (ROOT / "docs" / "report.jpg").stat().st_size < 150_000


def test_readme_names_every_command() -> None:
    for app in (avdata.cli.app, snnergy.cli.app):
        program = get_command(app)
        for name, command in getattr(program, "commands", {}).items():
            if command.hidden:
                continue
            assert re.search(rf"{program.name} {name}\b", TEXT), name


def test_readme_shows_clone_make_and_license_on_the_first_screen() -> None:
    first_screen = "\n".join(TEXT.splitlines()[:25])
    for text in ("git clone", "make demo", "make test", "pip install avdata", "Apache-2.0", "Python 3.11"):
        assert text in first_screen


def test_readme_table_of_datasets_is_that_of_the_recipes() -> None:
    shown = CliRunner().invoke(avdata.cli.app, ["recipes"], env={"COLUMNS": "200"}).output.splitlines()[1:]
    rows = [re.split(r"\s{2,}", line) for line in shown]
    expected = []
    for name, _, clips, hours, download, license_id, publish in rows:
        schemes = dict.fromkeys(
            re.sub(r"^fold:\d+$", "fold:K", scheme) for scheme in load_recipe(name).splits
        )
        expected.append([name, clips, hours, download, license_id, ", ".join(schemes), publish])
    table = re.findall(r"^\| \[`([\w-]+)`\]\(\S+\).*? \| (.+) \|$", TEXT, re.M)
    assert [[name, *cells.split(" | ")] for name, cells in table] == expected


def test_readme_cites_the_version_of_the_project() -> None:
    (entry,) = blocks("bibtex")
    assert f"version = {{{avdata.__version__}}}" in entry
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {avdata.__version__}" in citation
    assert json.dumps(entry).count("{") == json.dumps(entry).count("}")
