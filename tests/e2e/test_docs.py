"""Commands and Python blocks of docs/ run, and quoted messages, extras and counts exist.

The ```bash and ```python blocks of a page run in order in a temporary directory. The commands of ```sh
blocks need a network or a cluster; only their options are parsed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from support.command_server import CommandServer
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
APPS = {"avdata": avdata.cli.app, "snnergy": snnergy.cli.app}
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".sh", ".html"}
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.S | re.M)
ENV = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "NO_MKDOCS_2_WARNING": "1",
}

RUN_BLOCKS = "import sys\nfor text in sys.argv[1:]: exec(text, {'__name__': '__main__'})"


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def pages_with_commands() -> list[Path]:
    """Return pages with commands, except CREMA-D and alignment, which other tests run."""
    pages = (page for page in PAGES if page.stem not in {"cremad", "alignment"})
    return [page for page in pages if any(kind == "bash" for kind, _ in blocks(page))]


@pytest.mark.pages
@pytest.mark.parametrize("page", pages_with_commands(), ids=lambda page: page.stem)
def test_page_commands_run(page: Path, tmp_path: Path, command_server: CommandServer) -> None:
    for recipe in DOCS.glob("*_recipe.py"):
        shutil.copy(recipe, tmp_path)
    environment = {"AVDATA_CACHE": str(tmp_path / "cache")}
    # The Python blocks between two blocks of commands share a process, but no names.
    parts = (
        (kind, text) for kind, text in blocks(page) if kind in {"bash", "python"} and "--8<--" not in text
    )
    for kind, group in groupby(parts, key=lambda part: part[0]):
        texts = [text for _, text in group]
        words = [shlex.split(line) for text in texts for line in text.splitlines()]
        for command in words if kind == "bash" else [["python", "-c", RUN_BLOCKS, *texts]]:
            command_server.run(command, tmp_path, environment)


@cache
def program(name: str) -> Any:
    return get_command(APPS[name])


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.stem)
def test_shown_commands_exist(page: Path) -> None:
    for kind, text in blocks(page):
        for line in text.splitlines() if kind == "sh" else []:
            name, *words = shlex.split(line, comments=True)
            if name not in APPS:
                continue
            command = program(name)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context(line, words)  # raises on unknown options


@pytest.fixture(scope="session")
def site(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The built site; warnings are errors."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        done = subprocess.run(
            command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        if "SITE_DIR" in os.environ:  # set by `make docs`
            shutil.copytree(folder, ROOT / os.environ["SITE_DIR"])

    return once("site", build)


@pytest.mark.pages
def test_site_builds_without_warnings(site: Path) -> None:
    def html(page: str) -> str:
        return (site / page / "index.html").read_text(encoding="utf-8")

    assert "Claps and knocks" in html("custom-recipe")
    assert "open_dataset" in html("api/stream")
    assert "DistributedDataParallel" in html("examples")
    home = html(".")
    for text in ("Use the dark theme", "https://github.com/avdata/avdata", 'rel="next"'):
        assert text in home
    assert f"avdata {avdata.__version__}" in home


@pytest.mark.pages
def test_command_line_pages_have_every_option_and_example(site: Path) -> None:
    for name, app in {"avdata": avdata.cli.app, "snnergy": snnergy.cli.app}.items():
        page = (site / "cli" / name / "index.html").read_text(encoding="utf-8")
        for command in vars(get_command(app))["commands"].values():
            for part in [] if command.hidden else getattr(command, "params", []):
                assert part.param_type_name == "argument" or part.opts[-1] in page
        assert "{avdata." not in page  # placeholders of choices are filled


SEARCHED = (
    "DDP", "distributed", "multi-GPU", "resample", "sample rate", "fps", "collate", "augmentation",
    "metadata", "checksum", "warm-up", "parameters", "license", "Slurm", "Lightning", "accelerate",
    "SpecAugment", "bf16", "mixed precision", "resume", "checkpoint", "early stopping", "shuffle", "seed",
    "class weights", "imbalance", "S3", "proxy", "NaN", "ONNX", "quarantine", "optical flow", "fine-tune",
    "multi-node", "validation split", "confusion matrix", "cache", "num_workers", "TensorBoard", "wandb",
    "learning rate", "cross-validate", "deterministic",
)  # fmt: skip


@pytest.mark.pages
def test_search_finds_the_words_of_the_field(site: Path) -> None:
    """Every word is in the title of a section, which the search ranks first."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    separator = re.compile(index["config"]["separator"])
    pages = [entry for entry in index["docs"] if not entry["location"].startswith(("api/", "cli/"))]
    titles = [separator.split(entry["title"].lower()) for entry in pages]

    def is_found(words: str) -> bool:
        stems = [word for word in separator.split(words.lower()) if word]
        return any(
            all(any(part.strip("(),:`").startswith(stem) for part in title) for stem in stems)
            for title in titles
        )

    assert [words for words in SEARCHED if not is_found(words)] == []


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


def test_folder_recipe_needs_no_change_for_a_folder_of_videos(tmp_path: Path) -> None:
    source = avdata.mock(str(DOCS / "custom_recipe.py"), tmp_path / "raw", clips=12)
    (source / "clap" / "a-0.mp4").rename(source / "clap" / "a name.MP4")
    plan = avdata.plan(DOCS / "folder_recipe.py", source=source, checksums=False)
    assert plan.counts() == {
        "train": {"clap": 3, "knock": 3}, "val": {"clap": 1, "knock": 2}, "test": {"clap": 2, "knock": 1},
    }  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(avdata.SourceError, match="lists no clips in"):
        avdata.plan(DOCS / "folder_recipe.py", source=tmp_path / "empty", checksums=False)


def messages() -> set[str]:
    """Collect the texts of the code, without comments and docstrings; values are replaced by `…`."""
    texts = set()
    for path in (path for package in ("avdata", "snnergy") for path in (ROOT / package).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.add("".join(parts))
            elif (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            ):
                texts.add(node.value)
    return texts


def test_troubleshooting_quotes_existing_messages() -> None:
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    known = messages()
    assert len(quoted) > 10
    assert [text for text in quoted if not any(text in message for message in known)] == []


def test_performance_page_lists_exactly_the_benchmarks() -> None:
    named = re.findall(r"python benchmarks/(\w+\.py)`", (DOCS / "performance.md").read_text(encoding="utf-8"))
    modules = (ROOT / "benchmarks").glob("*.py")
    scripts = {path.name for path in modules if "make_parser(__doc__)" in path.read_text(encoding="utf-8")}
    assert set(named) == scripts | {"run.py"}


def test_mentioned_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folders = [ROOT / name for name in ("avdata", "snnergy", "recipes", "benchmarks", "docs")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in TEXT_SUFFIXES]
    named = {
        (path.name, name)
        for path in [*files, *ROOT.glob("*.md")]
        for names in re.findall(r"(?:avdata|'\.)\[([\w, -]+)\]", path.read_text(encoding="utf-8"))
        for name in names.replace(" ", "").split(",")
    }
    assert {"scale.md", "README.md", "install.md", "doctor.py"} <= {file for file, _ in named}
    known = extras["optional-dependencies"]
    assert {(file, name) for file, name in named if name not in known} == set()


def test_cremad_page_matches_its_manifest() -> None:
    page, facts = (DOCS / "cremad.md").read_text(encoding="utf-8"), load_manifest("cremad")
    counts = [f"{facts.expected[split]:,}" for split in ("train", "val", "test")]
    assert f"| `speaker` (default) | {' | '.join(counts)} |" in page
    size = f"{(facts.bytes or 0) / 1e9:.2f} GB"
    assert size in page
    assert size in README.read_text(encoding="utf-8")
