"""Tests of recipes: lookup, loading, mock writers and errors in a recipe file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import avdata
from avdata.errors import AvdataError, SourceError, UsageError
from avdata.manifest import load_manifest

WORKING = (Path(__file__).parents[1] / "docs" / "custom_recipe.py").read_text(encoding="utf-8")
LINE = WORKING[: WORKING.index("    videos = ")].count("\n") + 1


def prepare_recipe(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(text, encoding="utf-8")
    avdata.prepare(recipe, source=tmp_path, output=tmp_path / "set", checksums=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef broken(:\n", r"mine\.py:2 raised SyntaxError: invalid syntax"),
        ("\nimport nothing_of_this_name", r"mine\.py:2 raised ModuleNotFoundError: .*nothing_of_this_name"),
        (
            WORKING.replace("    videos = ", "    videos = {}['gone'] or "),
            rf"mine\.py:{LINE} raised KeyError: 'gone'",
        ),
        ("y = 3", r"mine\.py defines no RECIPE"),
    ],
)
def test_load_recipe_names_the_line_of_an_error_in_a_recipe_file(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(AvdataError, match=message):
        prepare_recipe(tmp_path, text)


def test_recipe_names_imports_no_recipe_and_no_torch() -> None:
    code = (
        "import sys, avdata; names = avdata.recipe_names();"
        "print(len(names), [name for name in sys.modules if name == 'torch' or '.recipes.' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, _, loaded = done.stdout.strip().partition(" ")
    assert int(count) >= 4
    assert loaded == "[]"


@pytest.mark.parametrize("name", avdata.recipe_names())
def test_bundled_recipe_has_manifest_page_and_tests(name: str) -> None:
    root, module = Path(__file__).parents[1], name.replace("-", "_")
    recipe = avdata.load_recipe(name)
    assert recipe.name == name
    assert callable(recipe.mock_writer())
    assert load_manifest(name).name == name
    assert (root / "recipes" / f"{module}.py").is_file()
    assert (root / "tests" / "recipes" / f"test_{module}.py").is_file()
    assert list((root / "docs").rglob(f"{name}.md"))


def test_load_recipe_finds_entry_points_and_prefers_bundled_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(name, "avdata.recipes.synthetic:RECIPE", "avdata.recipes") for name in ("ave", "other")
    ]
    monkeypatch.setattr("avdata.recipe.entry_points", lambda group: points)
    assert set(avdata.recipe_names()) > {"other", "ave"}
    assert avdata.load_recipe("other").name == "synthetic"
    assert avdata.load_recipe("other-agree").name == "synthetic-agree"
    assert avdata.load_recipe("ave").name == "ave"


def test_prepare_rejects_task_options_that_the_recipe_lacks(tmp_path: Path) -> None:
    for name, option, message in (
        ("webdataset", "lable", "Unknown task option 'lable' of the recipe webdataset"),
        ("cremad", "label", "Unknown task option 'label': the recipe cremad has no task options"),
    ):
        for config in (None, avdata.Config()):
            with pytest.raises(UsageError, match=message) as caught:
                avdata.prepare(
                    name, source=tmp_path, output=tmp_path / "o", config=config, task_options={option: "cls"}
                )
            assert "label" in str(caught.value.hint)
    with pytest.raises(UsageError, match="Unknown task option 'lable'"):
        avdata.load_recipe("webdataset").configure(None, {"select": {"task_options": {"lable": "cls"}}})


def test_clips_receives_the_task_options_of_config_and_arguments(tmp_path: Path) -> None:
    given: list[dict[str, str]] = []

    def clips(root: Path, split_by: str, options: dict[str, str]) -> list[avdata.Clip]:
        given.append(dict(options))
        return []

    recipe = replace(avdata.load_recipe("ave"), clips=clips, options={"a": "first", "b": "second"})
    for config, options in (
        ({"select": {"task_options": {"a": "1"}}}, {"b": "2"}),
        (recipe.configure(None, {"select": {"task_options": {"a": "1"}}}), {"b": "2"}),
        (None, {"a": "1", "b": "2"}),
    ):
        with pytest.raises(SourceError, match="The recipe lists no clips in"):
            avdata.plan(recipe, source=tmp_path, config=config, task_options=options, checksums=False)
    assert given == [{"a": "1", "b": "2"}] * 3


@pytest.mark.parametrize(
    ("reference", "detail"),
    [
        ("avdata.recipes.ave_mock:write_mocks", "cannot be imported: .*no attribute 'write_mocks'"),
        (
            "avdata.recipes.eva_mock:write_mock",
            "cannot be imported: No module named 'avdata.recipes.eva_mock'",
        ),
        ("write mock", "cannot be imported: invalid format"),
        ("avdata.recipes.ave_mock:FAST", "is not a function"),
    ],
)
def test_mock_names_a_reference_that_does_not_resolve(tmp_path: Path, reference: str, detail: str) -> None:
    recipe = replace(avdata.load_recipe("ave"), mock=reference)
    with pytest.raises(AvdataError, match=f"Mock '{reference}' of the recipe ave {detail}") as caught:
        avdata.mock(recipe, tmp_path / "mock")  # type: ignore[arg-type]
    assert "package.module:function" in str(caught.value.hint)


def test_mock_of_a_recipe_without_one_says_so(tmp_path: Path) -> None:
    recipe = replace(avdata.load_recipe("ave"), mock=None)
    with pytest.raises(UsageError, match="The recipe ave has no mock") as caught:
        avdata.mock(recipe, tmp_path / "mock")  # type: ignore[arg-type]
    assert "--source" in str(caught.value.hint)
    assert not (tmp_path / "mock").exists()
