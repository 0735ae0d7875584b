"""What a dataset must say of itself: its clips, labels, splits and defaults; and how recipes are found."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules, resolve_name
from types import ModuleType
from typing import Any, cast

from avdata.config.overrides import Overrides, merge_overrides
from avdata.config.presets import PRESETS
from avdata.config.schema import Config, build_config
from avdata.errors import AvdataError, SampleFlag, UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of a dataset, before features.

    Attributes:
        key: unique, `[A-Za-z0-9_-]+`, not starting with `__`; names the sample's members.
        label: label as text, one of the recipe's `labels`.
        group: what a split must not cross: speaker, fsID, video id.
        split: `train`, `val` or `test`.
        video: the file with the pictures (a video or a still image), whether or not it exists.
        audio: the separate audio file, whether or not it exists; None when the dataset has none.
        is_image: `video` is a still image, shown for the whole clip.
        event: [start, end) in seconds in which the label holds; None when it holds throughout.
        flags: what is known of the clip before it is opened.
        excluded: why the recipe leaves the clip out (a sentence); None when it does not.
        extras: small facts that go into the sample's JSON.
    """

    key: str
    label: str
    group: str
    split: str
    video: Path
    audio: Path | None = None
    is_image: bool = False
    event: tuple[float, float] | None = None
    flags: tuple[SampleFlag, ...] = ()
    excluded: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


MockWriter = Callable[[Path, int | None, bool, int], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that is true of one dataset and of no other.

    Attributes:
        name: as typed: `cremad`.
        version: raised when the clips, labels or splits it yields change.
        title: for people.
        labels: label texts in canonical order; a sample's label is the index here.
        label_orders: the other published orders, by name.
        background: the label of steps outside `Clip.event`, index `len(labels)`; None when there is none.
        splits: each way of splitting by name, with a sentence. `fold:K` is listed per fold.
        default_split: the one used when nobody asks.
        clips: `(root, split_by) -> clips`: every clip the folder's metadata or files name, sorted by key.
            Raises SourceError, naming what was looked for, when the folder is not this dataset.
        mock: `(out, clips, bad, seed) -> None`, or a reference to it, `package.module:function`, that is
            imported when a mock is made: writes a small faithful copy with its `manifest.json`.
        presets: adaptations of the shared presets, and presets of its own, by name.
        known_bad: clips broken at the source, by key, with the reason; `clips` marks them `excluded`.
        generated: the data is made by `mock`; `prepare` needs no source and makes it.
        clips_from_paths: `(root, paths, split_by) -> clips`: the clips that a manifest's file table names,
        before they
            are on disk, with `video` and `audio` relative to the root; raises SourceError when the root lacks
            the lists that the split is made from. None for a dataset that comes in archives.
        tasks: other sets of the same file, by name; they are called `name-task`.
    """

    name: str
    version: int
    title: str
    labels: tuple[str, ...]
    splits: Mapping[str, str]
    default_split: str
    clips: Callable[[Path, str], Sequence[Clip]]
    mock: MockWriter | str
    label_orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: str | None = None
    presets: Mapping[str, Overrides] = field(default_factory=dict)
    known_bad: Mapping[str, str] = field(default_factory=dict)
    generated: bool = False
    clips_from_paths: Callable[[Path, Sequence[str], str], Sequence[Clip]] | None = None
    tasks: Mapping[str, Recipe] = field(default_factory=dict)

    def configure(self, preset: str | None, *overrides: Overrides) -> Config:
        """The settings of a preset, adapted to this dataset, with overrides on top.

        Raises:
            UsageError: the preset, a key or a value is unknown, or they do not fit together.
        """
        name = preset or "snnergy"
        if name not in PRESETS and name not in self.presets:
            msg = f"there is no preset {name!r}"
            raise UsageError(msg, hint=did_you_mean(name, sorted({*PRESETS, *self.presets})))
        settled = build_config(merge_overrides(PRESETS.get(name, {}), self.presets.get(name, {})), *overrides)
        split_by = self.check_split(settled.select.split_by)
        return build_config(settled.model_dump(), {"select": {"split_by": split_by}})

    def check_split(self, split_by: str | None) -> str:
        """The name of a split that this recipe has, the default for None.

        Raises:
            UsageError: the recipe has no such split.
        """
        if split_by is None:
            return self.default_split
        if split_by not in self.splits:
            msg = f"{self.name} has no split {split_by!r}"
            raise UsageError(msg, hint=did_you_mean(split_by, list(self.splits)))
        return split_by

    def mock_writer(self) -> MockWriter:
        """Return the function that writes the mock, importing its module if `mock` is a reference.

        Raises:
            AvdataError: the reference does not name a function.
        """
        if not isinstance(self.mock, str):
            return self.mock
        try:
            writer = resolve_name(self.mock)
        except (ValueError, ImportError, AttributeError) as error:
            msg = f"Mock {self.mock!r} of the recipe {self.name} cannot be imported: {error}"
            raise AvdataError(msg, hint=_REFERENCE) from error
        if not callable(writer):
            msg = f"Mock {self.mock!r} of the recipe {self.name} is not a function"
            raise AvdataError(msg, hint=_REFERENCE)
        return cast("MockWriter", writer)


_REFERENCE = "write the reference as package.module:function"


def recipe_names() -> list[str]:
    """Return the sorted names of the bundled recipes and of the entry points of group `avdata.recipes`."""
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
    """The recipe of a name, of a path to a Python file that defines `RECIPE`, or itself.

    A bundled recipe comes before an entry point of the same name.

    Raises:
        UsageError: there is no such recipe or file.
        AvdataError: the file defines no `RECIPE`.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe).endswith(".py"):
        return _load_file(Path(recipe))
    bundled, installed = _bundled_modules(), _entry_points()
    names = bundled.keys() | installed.keys()
    name, _, task = str(recipe).rpartition("-")
    name, task = (str(recipe), "") if str(recipe) in names else (name, task)
    if name not in names:
        msg = f"there is no recipe {str(recipe)!r}"
        raise UsageError(msg, hint=did_you_mean(str(recipe), sorted(names)))
    if name in bundled:
        recipe = _recipe_of(importlib.import_module(bundled[name]), bundled[name])
    else:
        recipe = installed[name].load()
        assert isinstance(recipe, Recipe)
    return task_recipe(recipe, task) if task else recipe


def task_recipe(recipe: Recipe, task: str) -> Recipe:
    """One of a recipe's other tasks.

    Raises:
        UsageError: it has no such task.
    """
    if task not in recipe.tasks:
        msg = f"the recipe {recipe.name} has no task {task!r}"
        raise UsageError(msg, hint=did_you_mean(task, list(recipe.tasks)) if recipe.tasks else None)
    return recipe.tasks[task]


_DEBUG_HINT = "--debug shows how it came there"


@contextmanager
def recipe_errors(file: str) -> Iterator[None]:
    """What a recipe raises that is no word of ours, told with the line of its file.

    Raises:
        AvdataError: it raised something else.
    """
    try:
        yield
    except (AvdataError, OSError):
        raise
    except SyntaxError as error:
        msg = f"{file}:{error.lineno} raised SyntaxError: {error.msg}"
        raise AvdataError(msg, hint=_DEBUG_HINT) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [one.lineno for one in frames if Path(one.filename).name == Path(file).name]
        msg = f"{file}:{own[-1] if own else '?'} raised {type(error).__name__}: {error}"
        raise AvdataError(msg, hint=_DEBUG_HINT) from error


def _load_file(path: Path) -> Recipe:
    if not path.is_file():
        msg = f"there is no recipe file {path}"
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
        msg = f"{where} defines no RECIPE of type avdata.Recipe"
        raise AvdataError(
            msg, hint="end it with RECIPE = Recipe(...); recipes/synthetic.py is the shortest example"
        )
    return recipe
