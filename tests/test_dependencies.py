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
def imported_modules() -> set[str]:
    """Return all modules that the package imports, with their parents."""
    names: set[str] = set()
    for folder in ("avdata", "snnergy", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
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


def test_package_imports_no_module_of_unix_only() -> None:
    unix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"}
    assert not imported_modules() & unix
