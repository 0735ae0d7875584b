"""`benchmarks/learn.py`: its verdicts, and the page that shows its results."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def learn(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("learn")
    for name in ("learn", "learn_sets", "claims"):
        sys.modules.pop(name, None)


def test_check_targets_compares_medians_and_reports_missing_cells(learn: ModuleType) -> None:
    table = {
        "hidden": {
            row: {"all": value, "seeds": 3}
            for row, value in (("audio", 0.5), ("video", 0.6), ("concat", 0.8))
        }
    }
    before = {claim.name: claim for claim in learn.check_targets(table, ["hidden"])}
    assert before["hidden: audio, test accuracy, median of 3"].ok
    assert not before["hidden: cmqka - concat"].ok
    assert "not measured" in learn.tables(table, list(before.values()))
    table["hidden"]["cmqka"] = {"all": 0.805, "seeds": 3}
    after = {claim.name: claim for claim in learn.check_targets(table, ["hidden"])}
    assert after["hidden: cmqka - better single modality"].ok
    assert after["hidden: cmqka - concat"].ratio == 0.005
    assert not after["hidden: cmqka - concat"].ok
    assert "| hidden: cmqka - concat | at least 0.01 | 0.005 | **missed** |" in learn.tables(
        table, list(after.values())
    )


def test_summarize_returns_medians_over_seeds(learn: ModuleType) -> None:
    results = {
        ("grid", "tiny", seed): {"test": {"all": accuracy}, "cpu_seconds": 60.0 * seed}
        for seed, accuracy in enumerate((0.9, 0.5, 0.8))
    }
    assert learn.summarize(results) == {"grid": {"tiny": {"all": 0.8, "seeds": 3, "cpu_minutes": 1.0}}}


def test_learn_reuses_stored_cells_of_the_same_settings(learn: ModuleType, tmp_path: Path) -> None:
    path = learn.cell_path(tmp_path, "grid", "tiny", 0)
    path.parent.mkdir()
    stored = {"settings": learn.settings("grid", "tiny"), "test": {"all": 0.9}}
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert learn.read_cell(tmp_path, "grid", "tiny", 0) == stored
    stored["settings"]["epochs"] = 1
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert learn.read_cell(tmp_path, "grid", "tiny", 0) is None
    assert learn.read_cell(tmp_path, "grid", "tiny", 1) is None


def test_merge_results_keeps_earlier_cells_of_the_same_settings(learn: ModuleType) -> None:
    def cell(task: str, row: str, seed: int, accuracy: float) -> dict[str, Any]:
        stored = {"task": task, "row": row, "seed": seed, "test": {"all": accuracy}}
        return {**stored, "settings": learn.settings(task, row)}

    kept, again = cell("xor", "cmqka", 1, 0.9), cell("grid", "tiny", 0, 0.5)
    outdated = {**cell("grid", "small", 0, 0.7), "settings": {"epochs": 1}}
    removed = {**cell("grid", "small", 1, 0.7), "row": "removed"}
    measured = cell("grid", "tiny", 0, 0.8)
    merged = learn.merge_results([kept, again, outdated, removed], {("grid", "tiny", 0): measured})
    assert list(merged.items()) == [(("grid", "tiny", 0), measured), (("xor", "cmqka", 1), kept)]


def test_learning_page_shows_the_stored_results(learn: ModuleType) -> None:
    cells = json.loads(learn.RESULTS.read_text(encoding="utf-8"))
    table = learn.summarize({(cell["task"], cell["row"], cell["seed"]): cell for cell in cells})
    text = learn.tables(table, learn.check_targets(table, list(learn.TASKS)))
    assert text in learn.PAGE.read_text(encoding="utf-8")


def test_load_split_hides_one_modality_by_noise_or_mask(learn: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    tone = 0.3 * np.sin(np.arange(4000) / 4)
    for take in range(20):
        soundfile.write(tmp_path / "recordings" / f"{take % 10}_george_{take}.wav", tone, 8000)
    folder = tmp_path / "work" / "digits"
    learn.prepare_set("digits", tmp_path, folder)
    plain, noise, masked = (learn.load_split(folder, "test", hide=hide) for hide in (None, "noise", "mask"))
    assert set(plain.hidden.tolist()) == {2}
    assert set(noise.hidden.tolist()) == {0, 1, 2}
    assert masked.masked
    assert torch.equal(masked.audio, plain.audio)
    for row, hidden in enumerate(noise.hidden.tolist()):
        assert torch.equal(noise.audio[row], plain.audio[row]) == (hidden != 0)
        assert torch.equal(noise.frames[row], plain.frames[row]) == (hidden != 1)
    again = learn.load_split(folder, "test", hide="noise")
    assert torch.equal(again.audio, noise.audio)
    assert torch.equal(again.frames, noise.frames)
