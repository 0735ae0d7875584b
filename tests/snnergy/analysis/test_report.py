from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from avdata.errors import AvdataError
from snnergy.analysis.attention_masks import overlay_mask, record_masks
from snnergy.analysis.report import classes, collect_page_data, curves, report
from snnergy.models.network import build
from snnergy.training.config import TrainConfig
from snnergy.training.trainer import train


@pytest.fixture(scope="module")
def run(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(synthetic_set, out, TrainConfig(steps=3, batch_size=8, workers=0))
    return out


def test_the_page_of_a_run_shows_its_figures_and_fetches_nothing(run: Path) -> None:
    page = report(run).read_text(encoding="utf-8")
    result = json.loads((run / "result.json").read_text())
    assert f"accuracy {result['test']['accuracy']:.4f}" in page
    assert "Loss: train loss ends at" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert len(page) < 5_000_000


def test_samples_are_shown_with_what_the_network_says_of_them(run: Path, synthetic_set: Path) -> None:
    held = collect_page_data(run)
    assert held["note"] == ""
    assert len(held["looks"]) == 8
    for look in held["looks"]:
        assert {look.label, look.said} <= {"same", "different"}
        assert 0.5 <= look.sure <= 1
        assert look.pictures[0][0] == "frames"
        assert any("passes" in what for what, _ in look.pictures)
    assert all(0 <= rate <= 1 for _, rate in held["rates"])


def test_the_page_shows_the_energy_of_each_layer_and_of_the_network(run: Path) -> None:
    page = report(run).read_text(encoding="utf-8")
    energy = collect_page_data(run)["energy"]
    assert energy.samples == 8
    for value in (energy.millijoules(), energy.reference_millijoules, energy.millijoules_with_memory):
        assert f'<span class="n">{value:.3g}</span>' in page
    for layer in energy.layers:
        assert f"<code>{layer.name}</code>" in page


def test_a_run_that_was_stopped_or_whose_set_is_gone_still_has_its_page(run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "metrics.csv"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "Not finished" in page
    assert "no checkpoint" in page
    (tmp_path / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    assert "is not here" in report(tmp_path, dataset=tmp_path / "gone").read_text(encoding="utf-8")


def test_a_run_on_a_set_without_held_out_splits_is_not_called_unfinished(run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "result.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    held = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({k: held[k] for k in held.keys() - {"val", "test"}}))
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "neither a val nor a test split" in page
    assert "Not finished" not in page
    assert "Chance" not in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AvdataError, match="holds no run"):
        report(tmp_path)


def test_a_log_that_was_cut_short_has_its_whole_lines_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train_loss,val_loss\n1,0.7,\n2,0.6,0.65\n3,0.")
    (chart,) = curves(tmp_path / "metrics.csv")
    assert set(chart.shapes) == {"train loss", "val loss"}


def test_precision_recall_and_f1_are_those_of_the_matrix() -> None:
    rows = classes([[3, 1, 0], [0, 4, 0], [0, 0, 0]], ["a", "b", "c"])
    assert [row["recall"] for row in rows] == [0.75, 1.0, None]
    assert [row["precision"] for row in rows] == [1.0, 0.8, None]
    assert rows[0]["F1"] == pytest.approx(2 * 0.75 / 1.75)


def test_masks_are_shares_on_the_grid_of_their_stage() -> None:
    network = build("nano", num_classes=2, video_channels=3, fusion="cmqka").eval()
    seen = record_masks(network, torch.randn(4, 2, 1, 32, 32), torch.randn(4, 2, 3, 32, 32))
    assert seen.masks
    assert {modality for modality, _ in seen.masks} == {"audio", "video"}
    for mask in seen.masks.values():
        assert mask.shape[:2] == (2, 4)
        assert 0 <= mask.min() <= mask.max() <= 1
    assert np.allclose(seen.probabilities.sum(1), 1)


def test_shading_dims_exactly_where_the_mask_is_shut() -> None:
    mask = np.array([[1.0, 0.0], [0.0, 1.0]])
    light = overlay_mask(np.full((4, 4, 3), 200, np.uint8), mask)[..., 0]
    assert (light[:2, :2] == 200).all()
    assert (light[:2, 2:] == 50).all()
    assert (light[2:, 2:] == 200).all()
