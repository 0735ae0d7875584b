from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from avdata.errors import AvdataError
from snnergy.analysis.attention_masks import overlay_mask, record_masks
from snnergy.analysis.report import collect_page_data, curves, report
from snnergy.models.network import build
from snnergy.training.config import TrainConfig
from snnergy.training.trainer import train


@pytest.fixture(scope="module")
def run(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(synthetic_set, out, TrainConfig(model="nano", steps=3, batch_size=8, workers=0))
    return out


def test_report_contains_results_and_loads_no_external_files(run: Path) -> None:
    page = report(run).read_text(encoding="utf-8")
    result = json.loads((run / "result.json").read_text())
    assert f"accuracy {result['test']['accuracy']:.4f}" in page
    for row in result["test"]["per_class"].values():
        assert f'<td class="n">{row["recall"]:.3f}</td>' in page
    assert "Loss: train loss ends at" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert len(page) < 5_000_000


def test_report_shows_samples_with_predictions_and_masks(run: Path, synthetic_set: Path) -> None:
    page = collect_page_data(run)
    assert page["note"] == ""
    assert len(page["samples"]) == 8
    for sample in page["samples"]:
        assert {sample.label, sample.predicted} <= {"same", "different"}
        assert 0.5 <= sample.probability <= 1
        assert sample.images[0][0] == "frames"
        assert any("with mask" in title for title, _ in sample.images)
    assert all(0 <= rate <= 1 for _, rate in page["rates"])


def test_report_shows_energy_per_layer_and_in_total(run: Path) -> None:
    page = report(run).read_text(encoding="utf-8")
    energy = collect_page_data(run)["energy"]
    assert energy.samples == 8
    for value in (energy.millijoules(), energy.reference_millijoules, energy.millijoules_with_memory):
        assert f'<span class="n">{value:.3g}</span>' in page
    for layer in energy.layers:
        assert f"<code>{layer.name}</code>" in page


def test_report_works_without_result_checkpoint_or_dataset(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "metrics.csv"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "Not finished" in page
    assert "no checkpoint" in page
    (tmp_path / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    assert "Prepared dataset not found" in report(tmp_path, dataset=tmp_path / "gone").read_text(
        encoding="utf-8"
    )


def test_report_of_dataset_without_val_and_test_is_not_marked_unfinished(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "result.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    result = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({k: result[k] for k in result.keys() - {"val", "test"}}))
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "neither a val nor a test split" in page
    assert "Not finished" not in page
    assert "Chance" not in page


def test_report_raises_for_folder_without_run(tmp_path: Path) -> None:
    with pytest.raises(AvdataError, match="No run in"):
        report(tmp_path)


def test_curves_ignore_incomplete_last_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train_loss,val_loss\n1,0.7,\n2,0.6,0.65\n3,0.")
    (chart,) = curves(tmp_path / "metrics.csv")
    assert set(chart.shapes) == {"train loss", "val loss"}


def test_record_masks_returns_shares_between_0_and_1() -> None:
    network = build("nano", num_classes=2, video_channels=3, fusion="cmqka").eval()
    record = record_masks(network, torch.randn(4, 2, 1, 32, 32), torch.randn(4, 2, 3, 32, 32))
    assert record.masks
    assert {modality for modality, _ in record.masks} == {"audio", "video"}
    for mask in record.masks.values():
        assert mask.shape[:2] == (2, 4)
        assert 0 <= mask.min() <= mask.max() <= 1
    assert np.allclose(record.probabilities.sum(1), 1)


def test_overlay_mask_dims_where_mask_is_0() -> None:
    mask = np.array([[1.0, 0.0], [0.0, 1.0]])
    brightness = overlay_mask(np.full((4, 4, 3), 200, np.uint8), mask)[..., 0]
    assert (brightness[:2, :2] == 200).all()
    assert (brightness[:2, 2:] == 50).all()
    assert (brightness[2:, 2:] == 200).all()
