"""A prepared set with all that a report shows (bad clips, flags, sound), and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

import avdata


@pytest.fixture(scope="session")
def shown_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    source = avdata.mock("cremad", folder / "raw", clips=16, bad=True)
    settings = {"audio": {"flac": True}, "video": {"size": 64}}
    avdata.prepare("cremad", source=source, out=folder / "set", config=settings, workers=0)
    return folder / "set"


@pytest.fixture(scope="session")
def shown_page(shown_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return avdata.report(shown_set, tmp_path_factory.mktemp("page") / "report.html")
