from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import avdata
from avdata.errors import AvdataError
from snnergy.analysis.attention_masks import overlay_mask, record_masks
from snnergy.analysis.report import NetworkView, collect_page_data, curves, report
from snnergy.analysis.run_results import read_points
from snnergy.cli import app
from snnergy.models.network import build, recalibrate
from snnergy.training.config import TrainConfig
from snnergy.training.trainer import train


@pytest.fixture(scope="module")
def run(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(synthetic_set, out, TrainConfig(model="nano", steps=3, batch_size=8, workers=0))
    return out


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def view(run: Path) -> NetworkView:
    return collect_page_data(run)["view"]


def test_report_contains_results_and_loads_no_external_files(run: Path, page: str) -> None:
    result = json.loads((run / "result.json").read_text())
    assert f"accuracy {result['test']['accuracy']:.4f}" in page
    for row in result["test"]["per_class"].values():
        assert f'<span class="n">{row["recall"]:.3f}</span>' in page
    assert "Loss: train loss ends at" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert len(page) < 5_000_000


def test_report_shows_right_and_wrong_predictions_with_masks(view: NetworkView, synthetic_set: Path) -> None:
    assert view.note == ""
    assert len(view.samples) == 8
    wrong = sum(not sample.is_correct for sample in view.samples)
    assert wrong >= 4 or view.searched == min(64, len(avdata.open(synthetic_set, split="test")))
    # Wrong predictions come first.
    assert [sample.is_correct for sample in view.samples] == sorted(s.is_correct for s in view.samples)
    for sample in view.samples:
        assert {sample.label, sample.predicted} <= {"same", "different"}
        assert 0.5 <= sample.probability <= 1
        assert sample.images[0][0] == "frames"
        assert any("with mask" in title for title, _ in sample.images)
    assert all(0 <= rate <= 1 for _, rate in view.rates)


def test_report_lists_the_settings_that_differ_from_the_preset(page: str) -> None:
    assert "4 settings differ from the training preset <code>snnergy</code>" in page
    assert page.count("<code>batch_size</code>") == 2
    assert page.count("<code>weight_decay</code>") == 1


def test_report_shows_energy_per_layer_and_in_total(page: str, view: NetworkView) -> None:
    energy = view.energy
    assert energy is not None
    assert energy.samples == 8
    for value in (energy.millijoules(), energy.reference_millijoules, energy.millijoules_with_memory):
        assert f'<span class="n">{value:.3g}</span>' in page
    for layer in energy.layers:
        assert f"<code>{layer.name}</code>" in page


def test_report_plots_firing_rates_over_the_training_and_by_depth(run: Path, page: str) -> None:
    with (run / "rates.csv").open() as lines:
        (rates,) = csv.DictReader(lines)
    assert rates.pop("step") == "3"
    assert rates.keys() == json.loads((run / "result.json").read_text())["rates"].keys()
    first = [float(rate) for name, rate in rates.items() if name.startswith("encoders.video.0.")]
    for chart in ("Firing rate of audio during the training", "Firing rate of fusion during the training"):
        assert f"{chart}: stage 1 ends at" in page
    assert f"Firing rate of video during the training: stage 1 ends at {sum(first) / len(first):.4g}" in page
    assert re.search(r"Firing rate by depth: (audio|video) ends at", page)


def test_report_works_without_result_checkpoint_or_dataset(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "metrics.csv"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "Not finished" in page
    assert "no checkpoint" in page
    assert "Firing rate" not in page
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
    (chart,) = curves(read_points(tmp_path / "metrics.csv"))
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


def test_record_masks_ignores_an_absent_modality() -> None:
    network = build("nano", num_classes=2, video_channels=3)
    recalibrate(network, [(torch.randn(4, 4, 1, 32, 32), torch.randn(4, 4, 3, 32, 32))])
    network.eval()
    audio, absent = torch.randn(4, 2, 1, 32, 32), torch.tensor([False, True])
    one, two = (
        record_masks(network, audio, torch.randn(4, 2, 3, 32, 32), None, absent).probabilities
        for _ in range(2)
    )
    assert np.array_equal(one[0], two[0])
    assert not np.array_equal(one[1], two[1])


def test_overlay_mask_dims_where_mask_is_0() -> None:
    mask = np.array([[1.0, 0.0], [0.0, 1.0]])
    brightness = overlay_mask(np.full((4, 4, 3), 200, np.uint8), mask)[..., 0]
    assert (brightness[:2, :2] == 200).all()
    assert (brightness[:2, 2:] == 50).all()
    assert (brightness[2:, 2:] == 200).all()


def test_commands_read_a_dataset_behind_a_url(run: Path, synthetic_set: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(f"{synthetic_set}/", "/xor/set/", recursive=True)
    for command in (
        ["evaluate", run, "memory://xor/set", "--device", "cpu"],
        ["energy", run, "memory://xor/set", "--batches", 1, "--output", tmp_path / "energy.png"],
        ["report", run, "--dataset", "memory://xor/set", "--output", tmp_path / "page.html"],
    ):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output
    files.rm("/xor", recursive=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "memory://xor/set" in page
    assert "Cannot run the network" not in page
