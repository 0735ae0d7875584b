"""Recipes: the clips, labels, splits and defaults of a dataset, and how recipes are found."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from itertools import count
from pathlib import Path
from pkgutil import iter_modules, resolve_name
from types import ModuleType
from typing import Any, Literal, TypeVar, cast

from avdata.clips import Clip as Clip  # noqa: PLC0414  # recipes import it from here
from avdata.config.overrides import Overrides, merge_overrides
from avdata.config.presets import PRESETS
from avdata.config.schema import Config, build_config
from avdata.errors import AvdataError, UsageError, did_you_mean
from avdata.recipe_checks import check_labels, is_text, recipe_errors

_Result = TypeVar("_Result")

MockWriter = Callable[[Path, int | None, bool, int], None]


@dataclass(frozen=True)
class Recipe:
    """Definition of one dataset.

    Attributes:
        name: name on the command line, such as `cremad`.
        version: number to increase when the clips, labels or splits change.
        title: name for people.
        labels: label names in canonical order; the index is a sample's label. Empty if the source defines
            them, with `source_labels`.
        label_orders: other published orders of the labels, by name.
        background: label name of steps outside `Clip.event`, with index `len(labels)`; None if there is none.
        splits: description of each split scheme, by name. `fold:K` has one entry per fold.
        default_split: split scheme to use by default.
        clips: `(root, split_by) -> clips`: returns all clips of the folder, sorted by key, or yields them,
            which takes a third of the memory. Raises SourceError with the missing file's name if the folder
            is not this dataset. If the recipe has `options`, the third argument holds the given ones by name.
        mock: `(output, clips, bad, seed) -> None`, or a reference `package.module:function` to it that is
            imported when it is called. Writes a small copy of the dataset with its `manifest.json`. None for
            no mock.
        presets: changes to the shared presets, and presets of this recipe, by name.
        known_bad: reasons by key of clips that are broken at the source; `clips` marks them `excluded`.
        generated: whether `prepare` creates the data with `mock` and needs no source.
        clips_from_paths: `(root, paths, split_by) -> clips`: returns the clips of a manifest's file list
            before they are downloaded, with `video` and `audio` relative to the root. Raises SourceError
            if the root lacks the lists that define the split. None for a dataset in archives.
        options: description of each option that the recipe accepts with `--task-option`, by name.
        source_kind: `files`, `tars` if the source is tars of clips in the WebDataset layout, or `any` if it
            may be either. With tars, the first argument of `clips` is a `TarSource` in place of the folder.
        source_labels: `(root, clips, options) -> labels`: returns the label names in canonical order, with
            the first argument of `clips` and its result.
        tasks: other datasets from the same files, by task. Their name is `name-task`.
        lists: `(root, split_by) -> paths`: returns the lists of clips, labels or splits that `clips` reads,
            which are verified against the manifest like the media. None verifies no list.
    """

    name: str
    version: int
    title: str
    labels: tuple[str, ...]
    splits: Mapping[str, str]
    default_split: str
    clips: Callable[..., Sequence[Clip]]
    mock: MockWriter | str | None = None
    label_orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: str | None = None
    presets: Mapping[str, Overrides] = field(default_factory=dict)
    known_bad: Mapping[str, str] = field(default_factory=dict)
    generated: bool = False
    clips_from_paths: Callable[[Path, Sequence[str], str], Sequence[Clip]] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    source_kind: Literal["files", "tars", "any"] = "files"
    source_labels: Callable[[Any, Sequence[Clip], Mapping[str, str]], Sequence[str]] | None = None
    tasks: Mapping[str, Recipe] = field(default_factory=dict)
    lists: Callable[[Path, str], Sequence[Path]] | None = None

    def configure(self, preset: str | None, *overrides: Overrides) -> Config:
        """Return the settings of a preset, changed by the recipe and then by the overrides.

        Raises:
            UsageError: the preset, a key or a task option is unknown, or a value is invalid.
        """
        name = preset or "snnergy"
        if name not in PRESETS and name not in self.presets:
            msg = f"Unknown preset {name!r}."
            raise UsageError(msg, hint=did_you_mean(name, sorted({*PRESETS, *self.presets})))
        config = build_config(merge_overrides(PRESETS.get(name, {}), self.presets.get(name, {})), *overrides)
        self.check_options(config.select.task_options)
        split_by = self.check_split(config.select.split_by)
        return build_config(config.model_dump(), {"select": {"split_by": split_by}})

    def check_split(self, split_by: str | None) -> str:
        """Return a split scheme of this recipe; for None, the default.

        Raises:
            UsageError: the recipe does not have the split scheme.
        """
        if split_by is None:
            return self.default_split
        if split_by not in self.splits:
            msg = f"Unknown split scheme {split_by!r} of the recipe {self.name}."
            raise UsageError(msg, hint=did_you_mean(split_by, list(self.splits)))
        return split_by

    def check_options(self, options: Mapping[str, str]) -> None:
        """Check that the recipe accepts all of the task options.

        Raises:
            UsageError: the recipe does not have an option.
        """
        for name in options:
            if not self.options:
                msg = f"Unknown task option {name!r}: the recipe {self.name} has no task options."
                raise UsageError(msg, hint=f"Omit --task-option {name}={options[name]}.")
            if name not in self.options:
                msg = f"Unknown task option {name!r} of the recipe {self.name}."
                raise UsageError(msg, hint=did_you_mean(name, list(self.options)))

    def list_clips(self, root: Any, split_by: str, options: Mapping[str, str]) -> list[Clip]:
        """Return the clips of a source; see `iterate_clips`."""
        return list(self.iterate_clips(root, split_by, options))

    def iterate_clips(self, root: Any, split_by: str, options: Mapping[str, str]) -> Iterator[Clip]:
        """Yield the clips of a source, each in memory only until the caller releases it.

        Args:
            root: folder of the source, or its tars; see `source_kind`.
            split_by: split scheme.
            options: task options by name.

        Raises:
            AvdataError: the recipe raised an exception, or returned something else.
        """
        arguments = (root, split_by, options) if self.options else (root, split_by)
        return self._checked_clips(self.call(self.clips, *arguments))

    def list_clips_from_paths(self, root: Path, paths: Sequence[str], split_by: str) -> list[Clip]:
        """Return the clips of a manifest's file list, with paths relative to the root.

        Args:
            root: folder of the download.
            paths: paths of the files below it.
            split_by: split scheme.

        Raises:
            AvdataError: the recipe raised an exception, or returned something else.
        """
        assert self.clips_from_paths is not None
        return list(self._checked_clips(self.call(self.clips_from_paths, root, paths, split_by)))

    def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call one of the recipe's functions.

        Raises:
            AvdataError: it raised an exception; the message names its file and line.
        """
        code = getattr(function, "__code__", Recipe.call.__code__)
        with recipe_errors(code.co_filename):
            return function(*arguments)

    def _checked_clips(self, clips: object) -> Iterator[Clip]:
        hint = "Return a list of avdata.Clip, or yield them."
        if isinstance(clips, str | bytes | Mapping) or not isinstance(clips, Iterable):
            msg = f"Recipe {self.name} returned {type(clips).__name__} in place of its clips."
            raise AvdataError(msg, hint=hint)
        listed = clips if isinstance(clips, Iterator) else _released(list(clips))
        del clips
        end = object()
        for number in count():
            with recipe_errors(self.name):  # of a generator
                clip = next(listed, end)
            if clip is end:
                return
            if not isinstance(clip, Clip):
                msg = f"Clip {number} of the recipe {self.name} is {type(clip).__name__}, not avdata.Clip."
                raise AvdataError(msg, hint=hint)
            yield clip

    def mock_writer(self) -> MockWriter:
        """Return the function that writes the mock, importing its module if `mock` is a reference.

        Raises:
            UsageError: the recipe has no mock.
            AvdataError: the reference does not resolve to a function.
        """
        if self.mock is None:
            msg = f"The recipe {self.name} has no mock: it cannot generate a small copy of the dataset."
            raise UsageError(
                msg, hint="Use --source with files of the dataset, and --limit for a few of them."
            )
        if not isinstance(self.mock, str):
            return self.mock
        try:
            writer = resolve_name(self.mock)
        except (ValueError, ImportError, AttributeError) as error:
            msg = f"Mock {self.mock!r} of the recipe {self.name} cannot be imported: {error}."
            raise AvdataError(msg, hint=_REFERENCE) from error
        if not callable(writer):
            msg = f"Mock {self.mock!r} of the recipe {self.name} is not a function."
            raise AvdataError(msg, hint=_REFERENCE)
        return cast("MockWriter", writer)


def _released(values: list[Any]) -> Iterator[Any]:
    """Yield the values of a list, and remove each before it is yielded."""
    values.reverse()
    while values:
        yield values.pop()


MAX_NAME_LENGTH = 64
"""Maximum length of a recipe's name, which is part of the names of shards."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe after checks of its name and texts: it may be generated code, and its name is a path.

    Raises:
        AvdataError: a field has another type, or its value cannot be stored.
    """
    name = recipe.name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        msg = f"Invalid name of a recipe: {str(name)[:100]!a}."
        hint = f"Use at most {MAX_NAME_LENGTH} characters A-Z a-z 0-9 _ - that start with a letter or digit."
        raise AvdataError(msg, hint=hint)
    if type(recipe.version) is not int or recipe.version < 0:
        msg = f"Invalid version of the recipe {name}: {recipe.version!r}."
        raise AvdataError(msg, hint="Use a whole number.")
    check_labels(recipe.labels, f"labels of the recipe {name}")
    for what, order in recipe.label_orders.items():
        check_labels(order, f"label order {what} of the recipe {name}")
    texts = [recipe.title, *recipe.splits, *recipe.splits.values(), *recipe.options, *recipe.options.values()]
    if not all(map(is_text, texts)) or not (recipe.background is None or is_text(recipe.background)):
        msg = f"Invalid title, split, option or background of the recipe {name}: it is not text."
        raise AvdataError(msg)
    if recipe.default_split not in recipe.splits:
        msg = f"Default split {recipe.default_split!r} of the recipe {name} is not one of its splits."
        raise AvdataError(msg, hint=f"Splits: {', '.join(recipe.splits)}.")
    if recipe.background in recipe.labels:
        msg = f"Background {recipe.background!r} of the recipe {name} is also one of its labels."
        raise AvdataError(msg)
    return recipe


_REFERENCE = "Write the reference as package.module:function."


def recipe_names() -> list[str]:
    """Return the sorted names of bundled recipes and entry points `avdata.recipes`."""
    return sorted(_bundled_modules().keys() | _entry_points().keys())


def _bundled_modules() -> dict[str, str]:
    """Return the module of each bundled recipe by the recipe's name, without importing one."""
    package = importlib.import_module("avdata.recipes")
    modules = [module.name for module in iter_modules(package.__path__)]
    return {
        name.replace("_", "-"): f"avdata.recipes.{name}" for name in modules if not name.endswith("_mock")
    }


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="avdata.recipes")}


def load_recipe(recipe: str | Path | Recipe) -> Recipe:
    """Return a recipe. A bundled recipe takes precedence over an entry point of the same name.

    Args:
        recipe: a recipe's name, the path of a Python file that defines `RECIPE`, or a recipe.

    Raises:
        UsageError: the recipe or file does not exist.
        AvdataError: the file does not define `RECIPE`.
    """
    if isinstance(recipe, Recipe):
        return check_recipe(recipe)
    if str(recipe).endswith(".py"):
        return _load_file(Path(recipe))
    bundled, installed = _bundled_modules(), _entry_points()
    names = bundled.keys() | installed.keys()
    name, _, task = str(recipe).rpartition("-")
    name, task = (str(recipe), "") if str(recipe) in names else (name, task)
    if name not in names:
        msg = f"Unknown recipe {str(recipe)!r}."
        raise UsageError(msg, hint=did_you_mean(str(recipe), sorted(names)))
    if name in bundled:
        recipe = _recipe_of(importlib.import_module(bundled[name]), bundled[name])
    else:
        recipe = _load_entry_point(installed[name])
    return task_recipe(recipe, task) if task else recipe


def _load_entry_point(point: EntryPoint) -> Recipe:
    with recipe_errors(point.value):
        recipe = point.load()
    if not isinstance(recipe, Recipe):
        msg = f"Entry point {point.value} of the recipe {point.name} is not of type avdata.Recipe."
        raise AvdataError(msg)
    return check_recipe(recipe)


def task_recipe(recipe: Recipe, task: str) -> Recipe:
    """Return the recipe of one of the tasks.

    Raises:
        UsageError: the recipe does not have the task.
    """
    if task not in recipe.tasks:
        msg = f"Unknown task {task!r} of the recipe {recipe.name}."
        raise UsageError(msg, hint=did_you_mean(task, list(recipe.tasks)) if recipe.tasks else None)
    return check_recipe(recipe.tasks[task])


def _load_file(path: Path) -> Recipe:
    if not path.is_file():
        msg = f"The recipe file {path} does not exist."
        raise UsageError(msg)
    spec = importlib.util.spec_from_file_location(f"avdata_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with recipe_errors(str(path)):
        spec.loader.exec_module(module)
    return _recipe_of(module, str(path))


def _recipe_of(module: ModuleType, where: str) -> Recipe:
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        msg = f"{where} defines no RECIPE of type avdata.Recipe."
        raise AvdataError(msg, hint="Add RECIPE = Recipe(...). recipes/synthetic.py is a short example.")
    return check_recipe(recipe)
