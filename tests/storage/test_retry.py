"""Retries with backoff."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from avdata.storage.retry import MAX_DELAY_S, backoff, retry, retry_after


class ServerError(Exception):
    def __init__(self, retry_after: str | None = None) -> None:
        super().__init__("unavailable")
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        self.response = SimpleNamespace(headers=headers)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("avdata.storage.retry.time.sleep", slept.append)
    return slept


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def call(action: Callable[[], str], attempts: int = 4) -> str:
    return retry(
        action,
        should_retry=lambda error, attempt: isinstance(error, ServerError) and attempt < attempts,
        initial_delay_s=0.5,
        on_retry=lambda error, delay: None,
    )


def test_retry_doubles_the_delay(delays: list[float]) -> None:
    assert call(failing(ServerError(), ServerError(), ServerError())) == "done"
    assert delays == [0.5, 1.0, 2.0]


def test_retry_honors_retry_after_up_to_the_limit(delays: list[float]) -> None:
    assert call(failing(ServerError("7"), ServerError("86400"), ServerError("Fri, 01 Jan 2027"))) == "done"
    assert delays == [7.0, MAX_DELAY_S, 2.0]


def test_retry_raises_the_last_error_after_the_last_attempt(delays: list[float]) -> None:
    last = ServerError()
    with pytest.raises(ServerError) as caught:
        call(failing(ServerError(), last), attempts=2)
    assert caught.value is last
    assert delays == [0.5]


def test_retry_raises_other_errors_at_once(delays: list[float]) -> None:
    with pytest.raises(ValueError, match="wrong"):
        call(failing(ValueError("wrong")))
    assert delays == []


@pytest.mark.parametrize(("value", "expected"), [("7", 7.0), (" 7 ", 7.0), (None, None), ("soon", None)])
def test_retry_after_reads_seconds(value: str | None, expected: float | None) -> None:
    assert retry_after(value) == expected


@pytest.mark.parametrize(("offset", "expected"), [(50, 50.0), (-50, 0.0)])
def test_retry_after_reads_dates(offset: float, expected: float) -> None:
    assert retry_after(formatdate(time.time() + offset, usegmt=True)) == pytest.approx(expected, abs=5)


def test_backoff_is_random_and_bounded() -> None:
    drawn = [backoff(attempt) for attempt in range(1, 30)]
    assert len(set(drawn)) > 1
    assert all(0.1 <= delay <= 20.0 for delay in drawn)
