"""Recipes: the clips, labels, splits and defaults of a dataset, and how recipes are found."""

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
from typing import Any, Literal, cast

from avdata.config.overrides import Overrides, merge_overrides
from avdata.config.presets import PRESETS
from avdata.config.schema import Config, build_config
from avdata.errors import AvdataError, QuarantineReason, SampleFlag, UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Clip:
    """Item of a dataset before feature extraction.

    Attributes:
        key: unique name, `[A-Za-z0-9_-]+`, not starting with `__`. It names the sample's members.
        label: one of the recipe's `labels`.
        group: unit that a split must not divide: speaker, recording, video.
        split: `train`, `val` or `test`.
        video: video or image file, which need not exist; None for a dataset of audio, whose samples have no
            frames. Then it is None for all clips.
        audio: separate audio file, which need not exist; None if the dataset has none.
        is_image: whether `video` is a still image, used for all frames.
        event: [start, end) in seconds in which the label applies; None if it applies throughout.
        flags: flags that are known before the clip is opened.
        excluded: one sentence why the recipe excludes the clip; None if it does not. The label and split of
            an excluded clip may be empty.
        excluded_reason: code with which an excluded clip is quarantined.
        extras: small values to store in the sample's JSON.
    """

    key: str
    label: str
    group: str
    split: str
    video: Path | None
    audio: Path | None = None
    is_image: bool = False
    event: tuple[float, float] | None = None
    flags: tuple[SampleFlag, ...] = ()
    excluded: str | None = None
    excluded_reason: QuarantineReason = QuarantineReason.KNOWN_BAD
    extras: Mapping[str, Any] = field(default_factory=dict)


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
        clips: `(root, split_by) -> clips`: returns all clips of the folder, sorted by key. Raises SourceError
            with the missing file's name if the folder is not this dataset. If the recipe has `options`, the
            third argument holds the given ones by name.
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
        source_kind: `files`, or `tars` if the source is tars of clips in the WebDataset layout. The first
            argument of `clips` is then a `TarSource` in place of the folder.
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
    source_kind: Literal["files", "tars"] = "files"
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
        """Return the clips of a source.

        Args:
            root: folder of the source, or its tars; see `source_kind`.
            split_by: split scheme.
            options: task options by name.

        Raises:
            AvdataError: the recipe raised an exception.
        """
        code = getattr(self.clips, "__code__", Recipe.list_clips.__code__)
        with recipe_errors(code.co_filename):
            return list(self.clips(root, split_by, options) if self.options else self.clips(root, split_by))

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
        return recipe
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
        recipe = installed[name].load()
        assert isinstance(recipe, Recipe)
    return task_recipe(recipe, task) if task else recipe


def task_recipe(recipe: Recipe, task: str) -> Recipe:
    """Return the recipe of one of the tasks.

    Raises:
        UsageError: the recipe does not have the task.
    """
    if task not in recipe.tasks:
        msg = f"Unknown task {task!r} of the recipe {recipe.name}."
        raise UsageError(msg, hint=did_you_mean(task, list(recipe.tasks)) if recipe.tasks else None)
    return recipe.tasks[task]


_DEBUG_HINT = "Use --debug for the traceback."


@contextmanager
def recipe_errors(file: str) -> Iterator[None]:
    """Raise `AvdataError` with file and line in place of unexpected exceptions of a recipe.

    Raises:
        AvdataError: the recipe raised another exception than `AvdataError` or `OSError`.
    """
    try:
        yield
    except (AvdataError, OSError):
        raise
    except SyntaxError as error:
        msg = f"{file}:{error.lineno} raised SyntaxError: {error.msg}."
        raise AvdataError(msg, hint=_DEBUG_HINT) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
        msg = f"{file}:{lines[-1] if lines else '?'} raised {type(error).__name__}: {error}."
        raise AvdataError(msg, hint=_DEBUG_HINT) from error


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
    return recipe
