"""A prepared set with all that a report shows (bad clips, flags, sound), and its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import avdata


@pytest.fixture(scope="session")
def shown_mock(once: Callable[..., Path]) -> Path:
    return once("shown-mock", lambda out: avdata.mock("cremad", out, clips=16, bad=True))


@pytest.fixture(scope="session")
def shown_set(once: Callable[..., Path], shown_mock: Path) -> Path:
    settings = {"audio": {"flac": True}, "video": {"size": 64}}
    return once(
        "shown",
        lambda out: avdata.prepare("cremad", source=shown_mock, output=out, config=settings, workers=0),
    )


@pytest.fixture(scope="session")
def shown_page(once: Callable[..., Path], shown_set: Path) -> Path:
    return once("page", lambda out: avdata.report(shown_set, out / "report.html")) / "report.html"
