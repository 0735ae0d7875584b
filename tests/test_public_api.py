"""The public API as its users meet it: completion, help, pickling, reprs, errors, reference pages."""

from __future__ import annotations

import importlib.util
import pickle
import pydoc
import rlcompleter
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import dill
import pytest

import avdata
import snnergy
from avdata.storage import remote_files
from avdata.streaming import epochs, loader

ROOT = Path(__file__).parents[1]
PACKAGES = pytest.mark.parametrize("package", [avdata, snnergy], ids=lambda package: package.__name__)


def api_pages() -> ModuleType:
    """Return the MkDocs hook that writes the API reference."""
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs" / "api_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@PACKAGES
def test_dir_lists_exactly_the_public_names(package: ModuleType) -> None:
    assert dir(package) == sorted(package.__all__)


@PACKAGES
def test_tab_completion_offers_every_public_name(package: ModuleType) -> None:
    completer = rlcompleter.Completer({package.__name__: package})
    matches = set()
    state = 0
    while (match := completer.complete(f"{package.__name__}.", state)) is not None:
        matches.add(match.rstrip("()").partition(".")[2])
        state += 1
    assert set(package.__all__) <= matches


@PACKAGES
def test_help_shows_the_public_functions_before_all_else(package: ModuleType) -> None:
    text = pydoc.plain(pydoc.render_doc(package))
    head = text[: text.index("PACKAGE CONTENTS")]
    functions = [name for name in package.__all__ if name.islower()]
    assert not [name for name in functions if name not in head]


@pytest.fixture
def _same_modules() -> Iterator[None]:
    """Restore what the modules hold: a function that dill loads brings copies of the modules it names."""
    names = ("avdata", "snnergy")
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in names]
    contents = [dict(vars(module)) for module in modules]
    yield
    for module, content in zip(modules, contents, strict=True):
        vars(module).update(content)


def name_avdata() -> list[str]:
    return avdata.recipe_names()


@pytest.mark.usefixtures("_same_modules")
@pytest.mark.parametrize(
    "dumps", [cloudpickle.dumps, dill.dumps, lambda value: dill.dumps(value, recurse=True)],
    ids=["cloudpickle", "dill", "dill-recurse"],
)  # fmt: skip
def test_function_that_names_avdata_can_be_pickled_by_value(dumps: Callable[[Any], bytes]) -> None:
    function = lambda: avdata.recipe_names()  # noqa: E731, PLW0108  # by value, as a notebook's functions
    assert pickle.loads(dumps(function))() == name_avdata()


@pytest.mark.usefixtures("_same_modules")
def test_function_that_names_avdata_can_be_pickled_during_a_pass(synthetic_set: Path) -> None:
    batches = iter(avdata.open(synthetic_set).loader(4))
    next(batches)
    function = lambda: avdata.recipe_names()  # noqa: E731, PLW0108
    assert pickle.loads(dill.dumps(function, recurse=True))() == name_avdata()


@pytest.mark.usefixtures("_same_modules")
def test_function_that_names_avdata_can_be_pickled_while_a_canceled_thread_lives() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name="avdata-test")
    thread.start()
    remote_files.cancel_reads()
    try:
        assert pickle.loads(dill.dumps(remote_files, recurse=True)) is not None
        assert len(pickle.loads(dill.dumps(remote_files._canceled))) == 0
    finally:
        ended.set()
        thread.join()


def test_sets_of_live_objects_are_pickled_empty(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set)
    assert len(epochs._counters) > 0
    assert [len(pickle.loads(dill.dumps(live))) for live in (epochs._counters, loader._passes)] == [0, 0]
    del dataset


@PACKAGES
def test_module_is_a_plain_module(package: ModuleType) -> None:
    assert type(package) is ModuleType


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prepares'"):
        avdata.prepares  # noqa: B018


@pytest.mark.parametrize("kind", [avdata.AvdataError, avdata.UsageError, avdata.UnavailableError])
def test_str_of_an_error_contains_its_hint(kind: type[avdata.AvdataError]) -> None:
    error = kind("Unknown recipe 'crema'.", hint="Did you mean 'cremad'?")
    assert "Unknown recipe" in str(error)
    assert "Did you mean 'cremad'?" in str(error)
    assert str(kind("alone")) == "alone"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.message, copy.hint) == (kind, error.message, error.hint)


def test_reprs_of_public_objects_are_short_and_say_what_they_hold(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, "train")
    loader = dataset.loader(4, num_workers=0)
    batch = next(iter(loader))
    plan = avdata.plan("synthetic")
    report = avdata.verify(synthetic_set)
    mixed = avdata.mix([dataset, dataset])
    for value in (dataset, dataset[0], loader, batch, mixed, plan, report):
        text = repr(value)
        assert text.startswith(type(value).__name__), text
        assert "\n" not in text
        assert len(text) < 300, text
    assert str(synthetic_set) in repr(dataset)
    assert "train" in repr(dataset)
    assert f"{len(dataset)}" in repr(dataset)
    assert "4" in repr(batch)
    assert dataset[0].key in repr(dataset[0])


@PACKAGES
def test_api_reference_has_one_entry_for_every_public_name(package: ModuleType) -> None:
    topics = api_pages().TOPICS
    entries = [name for topic in topics for name in topic.names if name.startswith(f"{package.__name__}.")]
    assert sorted(entries) == sorted(f"{package.__name__}.{name}" for name in package.__all__)


@PACKAGES
def test_public_functions_and_classes_have_docstrings(package: ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        if callable(value):
            assert value.__doc__, name
