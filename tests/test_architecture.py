"""The layers of the two packages: imports point downward, without cycles, and public names are exact."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import avdata
import snnergy

ROOT = Path(__file__).parents[1]

LAYERS = [
    {"errors", "interrupts", "progress", "visualization"},
    {"clips", "config", "storage", "manifest", "manifests", "recipe_checks", "subprocesses"},
    {"media", "recipe"},
    {"features", "selection", "doctor"},
    {"shards", "sources", "testing"},
    {"pipeline", "streaming", "hub", "reporting", "layouts", "recipes"},
    {"cli"},
]
"""Packages and modules of avdata, lowest layer first. Packages of one layer do not import one another."""

SNNERGY_LAYERS = [
    {"kernels"}, {"layers"}, {"fusion"}, {"models"}, {"data"}, {"training"}, {"analysis"}, {"cli"},
]  # fmt: skip

SNNERGY_MAY_IMPORT = {
    "errors",
    "interrupts",
    "config",
    "progress",
    "streaming",
    "storage.atomic",
    "storage.hashing",
    "storage.locks",
    "storage.paths",
    "subprocesses",
}
"""Parts of avdata that all of snnergy may import."""

SNNERGY_PAGES_MAY_IMPORT = {"cli.console", "cli.options", "reporting", "visualization"}
"""Parts of avdata that only snnergy.cli and snnergy.analysis may import besides."""


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for folder, package in (("avdata", "avdata"), ("recipes", "avdata.recipes"), ("snnergy", "snnergy")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts))
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imported(module: str) -> tuple[str, ...]:
    """Return what `_imported` yields; parsing takes most of the time of these tests."""
    return tuple(_imported(module))


def _imported(module: str) -> Iterator[str]:
    """Modules of the project that a module imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules() or node.module in modules():
                    yield full if full in modules() else node.module


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def layer(module: str, layers: list[set[str]]) -> int | None:
    return next((number for number, names in enumerate(layers) if part(module) in names), None)


def packages(prefix: str) -> list[str]:
    """Modules of a package that belong to a layer; `__init__` and `__main__` are its public face."""
    return sorted(name for name in modules() if name.startswith(f"{prefix}.") and part(name) != "__main__")


@pytest.mark.parametrize("module", packages("avdata"))
def test_avdata_module_imports_only_from_below(module: str) -> None:
    own = layer(module, LAYERS)
    assert own is not None, f"{module} is in no layer"
    for target in imported(module):
        assert not target.startswith("snnergy"), f"{module} imports {target}"
        # Recipes are written against the public API, as those of users are, and commands call it.
        if part(target) == part(module) or (part(module) in {"recipes", "cli"} and target == "avdata"):
            continue
        assert part(target), f"{module} imports the public face {target}"
        other = layer(target, LAYERS)
        assert other is not None, f"{target} is in no layer"
        assert other < own, f"{module} (layer {own}) imports {target} (layer {other})"


@pytest.mark.parametrize("module", packages("snnergy"))
def test_snnergy_module_imports_only_from_below(module: str) -> None:
    own = layer(module, SNNERGY_LAYERS)
    assert own is not None, f"{module} is in no layer"
    allowed = SNNERGY_MAY_IMPORT | (
        SNNERGY_PAGES_MAY_IMPORT if part(module) in {"cli", "analysis"} else set()
    )
    for target in imported(module):
        if target.startswith("avdata"):
            inner = target.removeprefix("avdata").removeprefix(".")
            public = not inner or any(inner == name or inner.startswith(f"{name}.") for name in allowed)
            assert public, f"{module} imports {target}"
        elif part(target) != part(module):
            other = layer(target, SNNERGY_LAYERS)
            assert other is not None, f"{module} imports {target}"
            assert other < own, f"{module} (layer {own}) imports {target} (layer {other})"


def test_there_is_no_import_cycle() -> None:
    graph = {module: set(imported(module)) - {module} for module in modules()}
    waiting = {module: set(targets) for module, targets in graph.items()}
    while free := [module for module, targets in waiting.items() if not targets]:
        for module in free:
            del waiting[module]
        for targets in waiting.values():
            targets.difference_update(free)
    assert not waiting, f"in a cycle, or above one: {sorted(waiting)}"


@pytest.mark.parametrize("package", [avdata, snnergy], ids=lambda package: package.__name__)
def test_no_submodule_is_named_as_a_public_function(package: ModuleType) -> None:
    submodules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not submodules & set(package.__all__)


@pytest.mark.parametrize("package", [avdata, snnergy], ids=lambda package: package.__name__)
def test_public_names_are_exactly_all(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    submodules = {part(module) for module in modules() if module.startswith(f"{package.__name__}.")}
    visible = {name for name in vars(package) if not name.startswith("_")} - submodules - {"manifests"}
    assert visible <= set(package.__all__)
    assert set(package._EXPORTS) == set(package.__all__) == set(dir(package))


@pytest.mark.parametrize("module", sorted(modules()))
def test_module_is_shorter_than_400_lines_and_has_a_telling_name(module: str) -> None:
    path = modules()[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "core"}


def test_every_package_imports() -> None:
    for name in packages("avdata") + packages("snnergy"):
        if not name.endswith(("_mock", "lif_triton", "__main__")):
            import_module(name)
