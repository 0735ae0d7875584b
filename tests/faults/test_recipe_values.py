"""Odd values of a recipe and of its clips: one sentence that names the recipe or the clip, and the field."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avdata
from avdata.errors import AvdataError, MediaError, QuarantineReason, SampleFlag
from avdata.features.extract import _check_event
from avdata.recipe import Clip, Recipe, load_recipe
from avdata.selection import check_clips

CLIP = Clip("a", "x", "g", "train", Path("a.mp4"))

RECIPE = Recipe(
    name="mine", version=1, title="Mine", labels=("x", "y"), splits={"all": "one split"}, default_split="all",
    clips=lambda root, split_by: [CLIP],
)  # fmt: skip

SURROGATE = "\ud800"

FIELDS: list[tuple[str, Any]] = [
    ("label", 3), ("label", None), ("label", SURROGATE), ("label", ""),
    ("group", 7), ("group", None), ("group", SURROGATE), ("group", ""), ("group", ["g"]),
    ("split", 0), ("split", ""), ("video", "a.mp4"), ("audio", b"a.wav"), ("is_image", 1),
    ("event", (1.0,)), ("event", "ab"), ("event", 3.0), ("event", {"start": 1}), ("event", (2.0, 1.0)),
    ("event", (math.nan, 1.0)), ("event", (0.0, math.inf)), ("event", (-1.0, 1.0)), ("event", (None, 1.0)),
    ("event", (True, False)), ("flags", ("shiny",)), ("flags", "black_frames"), ("flags", None),
    ("extras", {"x": math.nan}), ("extras", {"x": object()}), ("extras", {"x": np.float32(1)}),
    ("extras", {1: "x"}), ("extras", [("x", 1)]), ("extras", {"x": SURROGATE}), ("extras", "x"),
    ("excluded", 5), ("excluded_reason", "known_bad"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_check_clips_names_clip_and_field(field: str, value: object) -> None:
    with pytest.raises(AvdataError, match=f"Invalid {field} of the clip a: ") as caught:
        check_clips([replace(CLIP, **{field: value})], ("x", "y"), ("train",))
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "key", [3, None, "", "a.b", "../../evil", "__a", SURROGATE, "a" * 90, "a\n", "-", b"a"]
)
def test_check_clips_refuses_an_invalid_key(key: object) -> None:
    with pytest.raises(AvdataError, match="Invalid clip key"):
        check_clips([replace(CLIP, key=key)], ("x",), ("train",))


def test_check_clips_refuses_keys_that_differ_only_by_case() -> None:
    clips = [replace(CLIP, key=key) for key in ("Clip", "clip")]
    with pytest.raises(AvdataError, match="Duplicate clip key 'clip' of the recipe: it differs from 'Clip'"):
        check_clips(clips, ("x",), ("train",))


@settings(max_examples=10)
@given(
    st.builds(
        Clip,
        key=st.from_regex(r"[A-Za-z0-9]{1,9}", fullmatch=True),
        label=st.just("x"),
        group=st.text(st.characters(codec="utf-8"), min_size=1),
        split=st.just("train"),
        video=st.just(Path("a.mp4")),
        event=st.none() | st.tuples(st.floats(0, 5), st.floats(5, 9)),
        flags=st.lists(st.sampled_from(SampleFlag)).map(tuple),
        extras=st.dictionaries(
            st.text(st.characters(codec="utf-8")),
            st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        ),
    )
)
def test_check_clips_accepts_what_the_docs_allow(clip: Clip) -> None:
    check_clips([clip], ("x",), ("train",))


RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"name": "../../evil"}, "Invalid name"), ({"name": ""}, "Invalid name"), ({"name": 3}, "Invalid name"),
    ({"name": "a" * 65}, "Invalid name"), ({"name": "a/b"}, "Invalid name"), ({"name": ".."}, "Invalid name"),
    ({"version": "1"}, "Invalid version"), ({"version": True}, "Invalid version"),
    ({"title": None}, "Invalid title"), ({"title": SURROGATE}, "Invalid title"),
    ({"labels": ("x", "x")}, "Label 'x' occurs twice"), ({"labels": ("x", "")}, "Invalid label"),
    ({"labels": (1, 2)}, "Invalid label"), ({"labels": "xy"}, "str in place of a tuple"),
    ({"labels": ("x", SURROGATE)}, "Invalid label"), ({"labels": None}, "in place of a tuple"),
    ({"label_orders": {"other": ("x", "x")}}, "occurs twice"),
    ({"splits": {"all": 3}}, "Invalid title, split"), ({"default_split": "none"}, "Default split 'none'"),
    ({"background": "x"}, "is also one of its labels"), ({"background": 5}, "background"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), RECIPES)
def test_load_recipe_refuses_odd_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AvdataError, match=message) as caught:
        load_recipe(replace(RECIPE, **changes))
    assert str(caught.value).isascii()


def test_prepare_writes_nothing_outside_the_output(tmp_path: Path) -> None:
    evil = replace(RECIPE, name="../../evil")
    (tmp_path / "raw").mkdir()
    with pytest.raises(AvdataError, match="Invalid name of a recipe"):
        avdata.prepare(evil, source=tmp_path / "raw", output=tmp_path / "out" / "set", checksums=False)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def exits(*_: object) -> Any:
    sys.exit(0)


def yields(*_: object) -> Any:
    yield CLIP
    sys.exit(0)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (exits, r"ended with sys\.exit\(0\)"),
        (yields, r"ended with sys\.exit\(0\)"),
        (lambda *_: [{"key": "a"}], "Clip 0 of the recipe mine is dict, not avdata.Clip"),
        (lambda *_: {"a": CLIP}, "returned dict in place of its clips"),
        (lambda *_: None, "returned NoneType in place of its clips"),
        (lambda *_: "abc", "returned str in place of its clips"),
        (lambda *_: [CLIP, None], "Clip 1 of the recipe mine is NoneType"),
    ],
)
def test_plan_refuses_what_is_no_list_of_clips(
    clips: Callable[..., Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AvdataError, match=message):
        avdata.plan(replace(RECIPE, clips=clips), source=tmp_path, checksums=False)


@pytest.mark.parametrize("name", ["lists", "source_labels"])
def test_plan_reports_a_recipe_that_ends_the_process(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    recipe = replace(RECIPE, clips=lambda root, _: [replace(CLIP, video=root / "a.mp4")], **{name: exits})
    with pytest.raises(AvdataError, match=r"ended with sys\.exit\(0\)"):
        avdata.plan(recipe, source=tmp_path, checksums=False)


def test_load_recipe_reports_a_file_that_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys; sys.exit(0)", encoding="utf-8")
    with pytest.raises(AvdataError, match=r"mine\.py ended with sys\.exit\(0\)"):
        load_recipe(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("event", "is_outside"),
    [((9.0, 12.0), False), ((10.0, 12.0), True), ((0.0, 0.5), True), ((0.0, 1.5), False), (None, False)],
)
def test_an_event_outside_the_clip_is_quarantined(
    event: tuple[float, float] | None, is_outside: bool
) -> None:
    clip = replace(CLIP, event=event)
    if not is_outside:
        _check_event(clip, [(1.0, 9.5), (2.0, 10.0)])
        return
    with pytest.raises(MediaError) as caught:
        _check_event(clip, [(1.0, 9.5), (2.0, 10.0)])
    assert caught.value.reason == QuarantineReason.NO_LABEL


def test_prints_of_a_recipe_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def clips(root: Path, split_by: str) -> list[Clip]:
        sys.stdout.write("listing\n")
        return [CLIP]

    replace(RECIPE, clips=clips).list_clips(tmp_path, "all", {})
    (tmp_path / "mine.py").write_text("print('loaded')\nRECIPE = None\n", encoding="utf-8")
    with pytest.raises(AvdataError, match="defines no RECIPE"):
        load_recipe(tmp_path / "mine.py")
    assert capsys.readouterr() == ("", "listing\nloaded\n")
