"""Progress callbacks."""

from __future__ import annotations

import pytest

import avdata


def test_tqdm_progress_draws_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    progress = avdata.tqdm_progress()
    for done in (1, 2, 3):
        progress("prepare", done, 3)
    output = capsys.readouterr().err
    assert "prepare" in output
    assert "3/3" in output


def test_tqdm_progress_restarts_a_finished_stage(capsys: pytest.CaptureFixture[str]) -> None:
    progress = avdata.tqdm_progress()
    progress("verify", 3, 3)
    capsys.readouterr()
    for done in (0, 4):
        progress("verify", done, 4)
    assert "4/4" in capsys.readouterr().err
