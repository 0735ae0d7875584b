"""Exceptions, reason codes and suggestions."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest

from avdata.errors import AvdataError, MediaError, QuarantineReason, SampleFlag, UsageError, error_message
from avdata.sources.failures import IncompleteError
from avdata.storage.atomic import DiskError

ROOT = Path(__file__).parents[1]

ERRORS = [
    AvdataError("out/cremad holds no dataset", hint="choose another folder"),
    AvdataError("out/cremad holds no dataset"),
    UsageError("unknown recipe 'crema'", hint="Did you mean 'cremad'?"),
    DiskError("the disk is full", hint="make room"),
    IncompleteError("2 files are missing", hint="try again", sources=["media"], files={"a.wav": "HTTP 404"}),
    MediaError(QuarantineReason.TRUNCATED, "a.mp4: ends early"),
]


def test_str_of_an_error_includes_the_hint() -> None:
    assert str(UsageError("unknown recipe 'crema'", hint="Did you mean 'cremad'?")) == (
        "unknown recipe 'crema'\nDid you mean 'cremad'?"
    )
    assert str(UsageError("unknown recipe 'crema'")) == "unknown recipe 'crema'"


def test_error_message_leaves_out_the_hint() -> None:
    assert error_message(UsageError("unknown recipe 'crema'", hint="Did you mean 'cremad'?")) == (
        "unknown recipe 'crema'"
    )
    assert error_message(ValueError("not a number")) == "not a number"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_error_survives_copy_and_pickle(error: Exception, duplicate: object) -> None:
    same = duplicate(error)  # type: ignore[operator]
    assert type(same) is type(error)
    assert str(same) == str(error)
    assert vars(same) == vars(error)
    assert same.args == error.args


@pytest.mark.parametrize("codes", [QuarantineReason, SampleFlag])
def test_codes_have_unique_values_and_descriptions(codes: type[QuarantineReason | SampleFlag]) -> None:
    assert len({code.value for code in codes}) == len(codes)
    assert all(code.description and code == str(code) for code in codes)
    assert pickle.loads(pickle.dumps(list(codes))) == list(codes)


def test_hints_begin_with_a_capital_letter_or_a_command() -> None:
    commands = {"avdata", "snnergy", "pip", "hf", "python", "torchrun"}
    for package in ("avdata", "snnergy", "recipes"):
        for path in (ROOT / package).rglob("*.py"):
            for word in re.findall(r"hint=f?[\"']([a-z]+)(?![a-z._(=])", path.read_text(encoding="utf-8")):
                assert word in commands, f"{path}: {word}"
