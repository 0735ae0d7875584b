"""Numbers of clips, splits and labels of the mocks of all recipes."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import avdata
from avdata.recipe import Clip, load_recipe
from avdata.testing import divide_clips

NAMES = [
    name
    for name in avdata.recipe_names()
    if not load_recipe(name).generated and load_recipe(name).source_kind != "tars"
]
"""Recipes whose mock is files of a fixed number of labels."""

WRITERS = ("write_av", "write_image", "write_wav", "_add_personal_metadata")


@pytest.fixture
def list_mock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, int], Sequence[Clip]]:
    """Return the clips of a mock whose media are empty files."""

    def touch(path: Path, *_: Any, **options: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    for recipe in NAMES:
        module = importlib.import_module(f"avdata.recipes.{recipe.replace('-', '_')}_mock")
        for writer in WRITERS:
            if hasattr(module, writer):
                monkeypatch.setattr(module, writer, touch)

    def clips(name: str, count: int) -> Sequence[Clip]:
        root = avdata.mock(name, tmp_path / f"{name}-{count}", clips=count)
        recipe = load_recipe(name)
        return recipe.list_clips(root, recipe.default_split, {})

    return clips


@pytest.mark.parametrize("name", NAMES)
def test_mock_has_exactly_the_requested_clips(
    name: str, list_mock: Callable[[str, int], Sequence[Clip]]
) -> None:
    labels = len(load_recipe(name).labels)
    for count in (1, 3, 7, 3 * labels):
        clips = list_mock(name, count)
        assert len(clips) == count
        if count >= 3:
            assert {clip.split for clip in clips} == {"train", "val", "test"}
        if count >= labels + 2:
            assert len({clip.label for clip in clips if clip.split == "train"}) == labels
        if count >= 3 * labels:
            assert len({(clip.split, clip.label) for clip in clips}) == 3 * labels


@pytest.mark.parametrize(("count", "labels"), [(100, 6), (18, 6), (17, 6), (5, 28), (3, 2), (1, 4)])
def test_divide_clips_gives_most_clips_to_train(count: int, labels: int) -> None:
    clips = divide_clips(count, labels)
    sizes = Counter(split for split, _ in clips)
    assert sum(sizes.values()) == count
    assert sizes["val"] == sizes["test"] <= sizes["train"]
