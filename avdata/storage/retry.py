"""Retries with exponential backoff."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import TypeVar

MAX_DELAY_S = 60.0

_MAX_BACKOFF_S = 20.0

_Result = TypeVar("_Result")


def retry(
    action: Callable[[], _Result],
    *,
    should_retry: Callable[[Exception, int], bool],
    initial_delay_s: float,
    on_retry: Callable[[Exception, float], None],
) -> _Result:
    """Return the result of `action`, repeating it while `should_retry` allows.

    The delay doubles after each attempt. A `Retry-After` header in the error's response replaces it.
    No delay is longer than `MAX_DELAY_S`.

    Args:
        action: function that can safely run more than once.
        should_retry: called with the error and the number of attempts so far.
        initial_delay_s: seconds before the second attempt.
        on_retry: called with the error and the delay in seconds before each wait.
    """
    for attempt in count(1):
        try:
            return action()
        except Exception as error:
            if not should_retry(error, attempt):
                raise
            requested = retry_after(_header(error))
            delay = min(initial_delay_s * 2 ** (attempt - 1) if requested is None else requested, MAX_DELAY_S)
            on_retry(error, delay)
        time.sleep(delay)
    raise AssertionError


def _header(error: Exception) -> str | None:
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    return headers.get("Retry-After")


def retry_after(value: str | None) -> float | None:
    """Return the delay in seconds of a `Retry-After` header, a number or a date; None if it is neither."""
    from urllib3 import Retry  # noqa: PLC0415
    from urllib3.exceptions import InvalidHeader  # noqa: PLC0415

    try:
        return Retry().parse_retry_after(value) if value else None
    except (InvalidHeader, ValueError, OverflowError):
        return None


def backoff(attempt: int) -> float:
    """Return a random delay in seconds before retry number `attempt`, counted from 1.

    Drawing from the full interval ("full jitter") spreads the retries of connections that broke together.
    """
    ceiling = min(_MAX_BACKOFF_S, 0.5 * 2.0**attempt)
    return random.uniform(0.1, ceiling)  # noqa: S311  # jitter needs no secrecy
