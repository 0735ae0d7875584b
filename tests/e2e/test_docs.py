"""Commands and Python blocks of docs/ run, and quoted messages, extras and counts exist.

The ```bash and ```python blocks of a page run in order in a temporary directory. The commands of ```sh
blocks need a network or a cluster; only their options are parsed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import avdata
import avdata.cli
import snnergy.cli
from avdata.manifest import load_manifest
from avdata.shards.reader import read_index

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".sh", ".html"}
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.S | re.M)
ENV = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "NO_MKDOCS_2_WARNING": "1",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def pages_with_commands() -> list[Path]:
    """Return pages with commands, except cremad.md, whose long trainings tests/snnergy runs shortened."""
    return [
        page for page in PAGES if page.stem != "cremad" and any(kind == "bash" for kind, _ in blocks(page))
    ]


@pytest.mark.pages
@pytest.mark.parametrize("page", pages_with_commands(), ids=lambda page: page.stem)
def test_page_commands_run(page: Path, tmp_path: Path) -> None:
    shutil.copy(DOCS / "custom_recipe.py", tmp_path)
    env = {**ENV, "AVDATA_CACHE": str(tmp_path / "cache")}
    for kind, text in blocks(page):
        if "--8<--" in text:
            continue
        words = [shlex.split(line) for line in text.splitlines()] if kind == "bash" else []
        for command in words if kind != "python" else [[sys.executable, "-c", text]]:
            done = subprocess.run(
                command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.stem)
def test_shown_commands_exist(page: Path) -> None:
    apps = {"avdata": avdata.cli.app, "snnergy": snnergy.cli.app}
    for kind, text in blocks(page):
        for line in text.splitlines() if kind == "sh" else []:
            name, *words = shlex.split(line, comments=True)
            if name not in apps:
                continue
            command: Any = get_command(apps[name])
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context(line, words)  # raises on unknown options


@pytest.mark.pages
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "custom-recipe" / "index.html").read_text(encoding="utf-8")
    assert "Claps and knocks" in page
    assert "open_dataset" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")


def test_custom_recipe_has_forty_lines_and_prepares_a_valid_dataset(tmp_path: Path) -> None:
    recipe = DOCS / "custom_recipe.py"
    assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 40
    source = avdata.mock(str(recipe), tmp_path / "raw", clips=8)
    done = avdata.prepare(
        recipe,
        source=source,
        output=tmp_path / "set",
        config={"video": {"size": 32}},
        checksums=False,
        workers=0,
    )
    assert (done.samples, done.quarantined) == (8, {})
    assert avdata.verify(tmp_path / "set").ok
    splits = {row["group"]: row["split"] for row in read_index(tmp_path / "set").to_pylist()}
    assert splits == {"a": "test", "b": "val", "c": "train", "d": "train"}


def test_troubleshooting_quotes_existing_messages() -> None:
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    code = "\n".join(path.read_text(encoding="utf-8") for package in ("avdata", "snnergy") for path in
                     (ROOT / package).rglob("*.py"))  # fmt: skip
    assert len(quoted) > 10
    assert [message for message in quoted if message not in code] == []


def test_performance_page_lists_exactly_the_benchmarks() -> None:
    named = re.findall(r"python benchmarks/(\w+\.py)`", (DOCS / "performance.md").read_text(encoding="utf-8"))
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(named) == scripts - {"stream_peers.py"}  # stream.py runs it


def test_mentioned_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folders = [ROOT / name for name in ("avdata", "snnergy", "recipes", "benchmarks", "docs")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in TEXT_SUFFIXES]
    named = {
        (path.name, name)
        for path in [*files, *ROOT.glob("*.md")]
        for names in re.findall(r"avdata\[([\w, -]+)\]", path.read_text(encoding="utf-8"))
        for name in names.replace(" ", "").split(",")
    }
    assert {"kubernetes.yaml", "scale.md", "README.md", "doctor.py"} <= {file for file, _ in named}
    known = extras["optional-dependencies"]
    assert {(file, name) for file, name in named if name not in known} == set()


def test_cremad_page_matches_its_manifest() -> None:
    page, facts = (DOCS / "cremad.md").read_text(encoding="utf-8"), load_manifest("cremad")
    counts = [f"{facts.expected[split]:,}" for split in ("train", "val", "test")]
    assert f"| `speaker` (default) | {' | '.join(counts)} |" in page
    size = f"{(facts.bytes or 0) / 1e9:.2f} GB"
    assert size in page
    assert size in README.read_text(encoding="utf-8")
