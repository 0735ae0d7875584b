"""Prepared datasets with bad clips, flags and audio, and a report page of one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import avdata


@pytest.fixture(scope="session")
def report_mock(once: Callable[..., Path]) -> Path:
    return once("report-mock", lambda output: avdata.mock("cremad", output, clips=16, bad=True))


@pytest.fixture(scope="session")
def report_dataset(once: Callable[..., Path], report_mock: Path) -> Path:
    settings = {"audio": {"flac": True}, "video": {"size": 64}}
    return once(
        "report-dataset",
        lambda output: avdata.prepare(
            "cremad", source=report_mock, output=output, config=settings, workers=0
        ),
    )


@pytest.fixture(scope="session")
def report_page(once: Callable[..., Path], report_dataset: Path) -> Path:
    page = once("report-page", lambda output: avdata.report(report_dataset, output / "report.html"))
    return page / "report.html"


@pytest.fixture(scope="session")
def changed_dataset(once: Callable[..., Path]) -> Path:
    """Return a dataset without the bad clips of `report_dataset`, with another setting of the audio."""
    settings = {"audio": {"amin": 1e-6}, "video": {"size": 64}}

    def prepare(output: Path) -> None:
        source = avdata.mock("cremad", output.with_name(f"{output.name}-mock"), clips=16)
        avdata.prepare("cremad", source=source, output=output, config=settings, workers=0)

    return once("changed-dataset", prepare)
