from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

import avdata.cli
import snnergy.cli
from avdata.config.schema import AlignConfig, setting_names
from avdata.errors import QuarantineReason

README = Path(__file__).parents[2] / "README.md"
BIN = Path(sys.executable).parent


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


@pytest.mark.pages
def test_readme_commands_run_in_order(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def run(command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    quick_start, inspecting, training = blocks("bash")
    assert len(quick_start.splitlines()) == 6
    for line in (quick_start + inspecting).splitlines():
        run(shlex.split(line))
    for code in blocks("python"):
        run([sys.executable, "-c", code])
    for line in training.splitlines():
        run(shlex.split(line))
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.pages
def test_alignment_commands_write_the_image(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    (commands,) = blocks("bash", README.parent / "docs" / "alignment.md")
    for line in commands.splitlines():
        subprocess.run(shlex.split(line), cwd=tmp_path, env=env, capture_output=True, timeout=600, check=True)
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_alignment_page_names_existing_settings_and_reasons() -> None:
    text = (README.parent / "docs" / "alignment.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:align|audio|video|quality)\.[a-z_]+)", text))
    assert named <= set(setting_names())
    windows = re.findall(r"^\| `([a-z]+)` \|", text.partition("`align.window`")[2].partition("\n\n")[0], re.M)
    assert set(windows) == set(get_args(AlignConfig.model_fields["window"].annotation))
    quarantine = text.partition("## Quarantine")[2].partition("Clipped")[0]
    reasons = set(re.findall(r"`([a-z]+_[a-z]+)`", quarantine))
    assert reasons
    assert reasons <= {reason.value for reason in QuarantineReason}


def test_readme_links_every_page_or_its_index() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", README.read_text(encoding="utf-8")))
    assert all((README.parent / link).is_file() for link in linked)
    pages = {page.relative_to(README.parent).as_posix() for page in (README.parent / "docs").rglob("*.md")}
    # Pages of datasets and decisions are listed by the site; a new one needs no line in the README.
    listed = {page for page in pages if page.startswith(("docs/datasets/", "docs/decisions/"))}
    assert pages - linked - listed == {"docs/index.md"}


def test_readme_image_is_small() -> None:
    picture = README.parent / "docs" / "report.jpg"
    assert "](docs/report.jpg)" in README.read_text(encoding="utf-8")
    assert 10_000 < picture.stat().st_size < 150_000


def test_readme_names_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    for app in (avdata.cli.app, snnergy.cli.app):
        program = get_command(app)
        for name, command in getattr(program, "commands", {}).items():
            if command.hidden:
                continue
            assert re.search(rf"{program.name} {name}\b", text), name


def test_readme_shows_make_and_pip_on_the_first_screen() -> None:
    first_screen = README.read_text(encoding="utf-8").splitlines()[:25]
    assert any(line.startswith("make demo") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)
    assert any("pip install avdata" in line for line in first_screen)
