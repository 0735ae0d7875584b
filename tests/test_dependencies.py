"""Requirements of the package, the page that explains them, and the code that imports them."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]]  # type: ignore[index]
MODULES = {"ffmpeg-python": "ffmpeg", "huggingface-hub": "huggingface_hub", "pillow": "PIL", "pyyaml": "yaml"}
IMPORTED_BY_LIBRARIES = {"safetensors": "huggingface_hub", "tensorboard": "torch.utils.tensorboard"}


@cache
def imported_modules(*, handled: bool = True) -> set[str]:
    """Return all modules that the package imports, with their parents.

    Args:
        handled: include imports in a `try` that handles ImportError.
    """
    names: set[str] = set()
    for folder in ("avdata", "snnergy", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try) and not handled]
            skipped = {
                child for node in tries for statement in node.body for child in ast.walk(statement)
                if any("ImportError" in ast.unparse(handler.type or node) for handler in node.handlers)
            }  # fmt: skip
            for node in set(ast.walk(tree)) - skipped:
                if isinstance(node, ast.Import):
                    names.update(alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module)
    return names | {name.partition(".")[0] for name in names}


def test_dependencies_page_has_a_row_for_each_requirement() -> None:
    rows = re.findall(r"^\| ([\w-]+) \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    assert sorted(row for row in rows if row != "package") == sorted(REQUIREMENTS)


@pytest.mark.parametrize("package", REQUIREMENTS)
def test_requirement_is_imported_at_run_time(package: str) -> None:
    module = IMPORTED_BY_LIBRARIES.get(package) or MODULES.get(package, package)
    assert module in imported_modules(), f"no module of the package imports {module}"


def test_modules_of_unix_only_are_imported_only_where_their_absence_is_handled() -> None:
    unix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"}
    assert not imported_modules(handled=False) & unix
