"""Filters on the index: the rows that Python selects with the same condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avdata
from avdata.errors import SampleFlag, UsageError
from avdata.shards.format import index_schema
from avdata.shards.reader import read_index
from avdata.streaming.filter import parse_filter

FLAGS = [flag.value for flag in SampleFlag]
LABEL_NAMES = ["angry", "dog bark", "it's", ""]
TIMES = [0.0, 0.5, 1.25]


class Missing:
    """Missing value: equals nothing, and is neither less nor greater than any value."""

    def _is_met(self, other: object) -> bool:
        return False

    __lt__ = __le__ = __gt__ = __ge__ = _is_met


def select(text: str, rows: list[dict[str, Any]]) -> list[bool]:
    """Return which rows meet a condition according to Python."""
    values = [{name: Missing() if value is None else value for name, value in row.items()} for row in rows]
    return [bool(eval(text, {"__builtins__": {}}, row)) for row in values]


def filtered(text: str, rows: list[dict[str, Any]]) -> list[bool]:
    """Return which rows meet a condition according to `parse_filter`."""
    table = pa.Table.from_pylist(rows, schema=index_schema()).append_column("row", pa.array(range(len(rows))))
    found = table.filter(parse_filter(text, index_schema()))["row"].to_pylist()
    return [number in found for number in range(len(rows))]


index_rows = st.lists(
    st.fixed_dictionaries(
        {
            "label": st.integers(0, 4),
            "label_name": st.sampled_from(LABEL_NAMES),
            "av_offset": st.none() | st.sampled_from(TIMES),
            "flags": st.lists(st.sampled_from(FLAGS), max_size=3, unique=True),
        }
    ),
    min_size=1,
    max_size=8,
)
operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
brackets = st.sampled_from([("(", ",)"), ("[", "]"), ("{", "}")])


def comparisons_of(column: str, values: list[Any]) -> st.SearchStrategy[str]:
    value = st.sampled_from(values)
    compared = st.builds(lambda sign, value: f"{column} {sign} {value!r}", operators, value)
    is_in = st.builds(
        lambda word, items, ends: f"{column} {word} {ends[0]}{', '.join(map(repr, items))}{ends[1]}",
        st.sampled_from(["in", "not in"]),
        st.lists(value, min_size=1, max_size=3),
        brackets,
    )
    return compared | is_in


comparisons = (
    comparisons_of("label", [0, 1, 3, 7])
    | comparisons_of("label_name", [*LABEL_NAMES, "other"])
    | comparisons_of("av_offset", [*TIMES, 1])
    | st.builds("{!r} {} flags".format, st.sampled_from(FLAGS), st.sampled_from(["in", "not in"]))
)
conditions = st.recursive(
    comparisons,
    lambda inner: (
        st.builds("not ({})".format, inner)
        | st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("{} {} {}".format, comparisons, st.sampled_from(["and", "or"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(conditions, index_rows)
def test_filter_selects_the_rows_that_python_selects(text: str, rows: list[dict[str, Any]]) -> None:
    assert filtered(text, rows) == select(text, rows)


def test_filter_on_flags_does_not_match_parts_of_flags() -> None:
    # Such names do not exist: they are what a search in joined flags could confuse.
    rows: list[dict[str, Any]] = [
        {"flags": ["no_face_x"]},
        {"flags": ["xno_face"]},
        {"flags": ["a", "no_face", "b"]},
    ]
    assert filtered("'no_face' in flags", rows) == [False, False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("av_offset != 0.5", [True, False]),
        ("not av_offset == 0.5", [True, False]),
        ("not av_offset < 0.1", [True, True]),
        ("av_offset not in (0.5,)", [True, False]),
        ("'no_face' not in flags", [True, True]),
    ],
)
def test_filter_treats_a_missing_value_as_unequal(text: str, expected: list[bool]) -> None:
    assert filtered(text, [{"av_offset": None, "flags": None}, {"av_offset": 0.5, "flags": []}]) == expected


# -- of datasets -----------------------------------------------------------------------------------------


def rows_of(root: Path, split: str = "train") -> list[dict[str, Any]]:
    return [row for row in read_index(root).to_pylist() if row["split"] == split]


def test_loader_returns_exactly_the_selected_samples(cremad_set: Path) -> None:
    rows = rows_of(cremad_set)
    group = rows[0]["group"]
    loader = avdata.open(cremad_set, "train", filter=f"group != '{group}'").loader(3)
    got = [key for batch in loader for key, weight in zip(batch.key, batch.weight, strict=True) if weight]
    assert got == [row["key"] for row in rows if row["group"] != group]
    assert 0 < len(got) < len(rows)


@pytest.mark.parametrize("flag", ["zero_length_event", "av_mismatch", "multi_label"])
def test_open_selects_samples_by_flag(ave_set: Path, flag: str) -> None:
    rows = rows_of(ave_set)
    with_flag = [row["key"] for row in rows if flag in row["flags"]]
    without = [row["key"] for row in rows if flag not in row["flags"]]
    assert avdata.open(ave_set, filter=f"{flag!r} in flags").keys == with_flag
    assert avdata.open(ave_set, filter=f"{flag!r} not in flags").keys == without
    condition = f"{flag!r} not in flags and label_name in {{{rows[0]['label_name']!r}}}"
    assert avdata.open(ave_set, filter=condition).keys == [
        row["key"] for row in rows if flag not in row["flags"] and row["label"] == rows[0]["label"]
    ]


def test_data_module_and_mix_filter_by_flag(ave_set: Path) -> None:
    flag = "zero_length_event"
    data = avdata.AVDataModule(ave_set, train_options={"filter": f"{flag!r} not in flags"})
    data.setup("fit")
    keys = [row["key"] for row in rows_of(ave_set) if flag not in row["flags"]]
    assert data.splits["train"].keys == keys
    assert len(avdata.mix([data.splits["train"]])) == len(keys) < len(rows_of(ave_set))


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').system('x')", "not a comparison"),
        ("label", "not a comparison"),
        ("label ==", "invalid syntax"),
        ("f(label) == 1", "not a comparison"),
        ("1 == label", "not a comparison"),
        ("0 <= label < 2", "not a comparison"),
        ("label is None", "not a comparison"),
        ("label == other", "'other' is not a value"),
        ("label in flags", "'flags' is not a value"),
        ("not " * 3_000 + "label == 1", "too deeply nested"),
        # pyarrow ends the process with a stack overflow.
        (" and ".join(["label == 1"] * 10_000), r"10,000 comparisons, more than 1,000; use COLUMN in"),
    ],
)
def test_filter_refuses_everything_but_comparisons(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)Invalid filter .*({message})"):
        parse_filter(text, index_schema())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label == 'angry'", "no kernel"),
        ("group != 1001", "no kernel"),
        ("label == 99999999999999999999", "too large"),
        ("label == None", "column label cannot be compared with None"),
        ("label in (None, 1)", "column label cannot be compared with None"),
        ("group in (1, 2)", r"\(1, 2\) are not all values of column group \(string\)"),
        ("label in (0.5, 1)", r"\(0.5, 1\) are not all values of column label \(int32\)"),
        ("label in (0, 'a')", "are not all values of column label"),
        ("label in [99999999999999999999]", "are not all values of column label"),
        ("label in 3", "3 after `in` is not a tuple, list or set"),
        ("label_name in 'dog bark'", "'dog bark' after `in` is not a tuple, list or set"),
        ("flags == 'silent_audio'", "column flags is a list; use 'value' in flags"),
        ("flags in ('silent_audio',)", "column flags is a list; use 'value' in flags"),
        ("'a' in group", r"column group is not a list; use group in \('a',\)"),
        ("0 not in label", r"column label is not a list; use label in \(0,\)"),
    ],
)
def test_filter_refuses_a_value_of_another_type_than_its_column(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"Invalid filter .*{message}") as caught:
        parse_filter(text, index_schema())
    assert "'silent_audio' not in flags" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "name", "suggestion"),
    [
        ("gruop == 'a'", "column 'gruop'", "Did you mean 'group'?"),
        ("'silent_audio' in flag", "column 'flag'", "Did you mean 'flags'?"),
        ("'silent' in flags", "flag 'silent'", "Did you mean 'silent_audio'?"),
        ("label == 1 and not 'black_frame' in flags", "flag 'black_frame'", "Did you mean 'black_frames'?"),
        ("3 in flags", "flag 3", "Known: dup_audio_of, dup_image_of"),
    ],
)
def test_filter_suggests_columns_and_flags(
    synthetic_set: Path, text: str, name: str, suggestion: str
) -> None:
    with pytest.raises(UsageError, match=f"Unknown {name}") as caught:
        avdata.open(synthetic_set, "train", filter=text)
    assert str(caught.value.hint).startswith(suggestion)
