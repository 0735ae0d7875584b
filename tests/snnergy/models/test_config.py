from __future__ import annotations

from typing import Any

import pytest

import snnergy
from avdata.errors import UsageError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dims": (16, 32, 66)}, "multiples of heads"),
        ({"dims": (15, 32, 64), "heads": (1, 2, 4)}, "even"),
        ({"combine": "and"}, "or"),
        ({"neuron": "pilf"}, "plif"),
        ({"fusion": "concat", "head": "sum"}, "fusion='sum'"),
        ({"branches": "ts"}, "t"),
        ({"fusion_output": "spike"}, "sew"),
        ({"fusion_stages": (0,)}, "last"),
        ({"fusion": "sum", "fusion_stages": (1,)}, "cmqka"),
    ],
    ids=str,
)
def test_config_rejects_contradicting_settings_with_hint(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        snnergy.build("nano", **options)
    assert said in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("dims", 4, "a list of integers"),
        ("heads", [1, 2, "x"], "a list of integers"),
        ("depths", (1, 1, 1.5), "a list of integers"),
        ("fusion_stages", 3, "a list of integers"),
        ("ratio", "abc", "an integer"),
        ("steps", 2.5, "an integer"),
        ("num_classes", True, "an integer"),
        ("alpha_init", "abc", "a number"),
        ("alpha_init", float("nan"), "a number"),
        ("alpha_init", [0.1, 1.0], "a number or three numbers"),
        ("alpha_init", (0.1, "abc", 1.0), "a number or three numbers"),
        ("checkpoint", "maybe", "true or false"),
    ],
)
def test_config_rejects_values_of_wrong_type(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be {said}"):
        snnergy.build("nano", **{name: value})
