"""Registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avdata.errors import UsageError, did_you_mean


def check_choice(value: object, choices: Mapping[str, Any] | tuple[str, ...], what: str) -> None:
    """Refuse a name that is not among some.

    Raises:
        UsageError: it is not; the hint names the nearest.
    """
    if value not in choices:
        msg = f"there is no {what} {value!r}"
        raise UsageError(msg, hint=did_you_mean(str(value), list(choices)))


FUSIONS: Mapping[str, Mapping[str, Any]] = {
    "cmqka": {},
    "cmqka_s": {"branches": "s"},
    "cmqka_t": {"branches": "t"},
    "cmqka_o": {"branches": "o"},
    "cmqka_last": {"fusion_stages": (3,)},
    "cmqka_fixed0": {"alpha_init": 0.0, "learn_alpha": False},
    "cmqka_fixed1": {"alpha_init": 1.0, "learn_alpha": False},
    "ccssa": {},
    "sca": {},
    "concat": {"fusion_stages": ()},
    "sum": {"fusion_stages": ()},
    "film": {"fusion_stages": ()},
    "gated": {"fusion_stages": ()},
    "weight_attention": {"fusion_stages": ()},
    "cmci": {"fusion_stages": ()},
    "audio": {"fusion_stages": ()},
    "video": {"fusion_stages": ()},
}
"""Ways of fusing by name, and what each fixes; those without fusion stages join at the head or use one."""
