from __future__ import annotations

from pathlib import Path

import pytest

from avdata.errors import UsageError
from avdata.shards.reader import read_index
from avdata.shards.sample import load_sample


def test_load_sample_without_a_key_returns_the_first_sample(cremad_set: Path) -> None:
    assert load_sample(cremad_set).row == read_index(cremad_set).to_pylist()[0]


def test_load_sample_suggests_the_closest_key(cremad_set: Path) -> None:
    key = read_index(cremad_set).column("key").to_pylist()[3]
    with pytest.raises(UsageError, match="Unknown sample key") as caught:
        load_sample(cremad_set, f"{key}x")
    assert caught.value.hint == f"Did you mean {key!r}?"


def test_repr_of_a_sample_is_short(cremad_set: Path) -> None:
    sample = load_sample(cremad_set)
    assert repr(sample) == (
        f"StoredSample(key={sample.row['key']!r}, label={sample.row['label_name']!r},"
        " mel=[4, 128, 128], frames=[4, 48, 48, 3])"
    )
