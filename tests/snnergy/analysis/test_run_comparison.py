from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score

from avdata.errors import AvdataError, UsageError
from snnergy.analysis.report import report
from snnergy.analysis.run_comparison import collect_comparison
from snnergy.analysis.run_results import find_baseline, read_metrics, read_run, wilson_interval
from snnergy.training.config import resolve_config


def write_run(folder: Path, confusion: list[list[int]], split: str = "test", **settings: Any) -> Path:
    """Write a finished run with two labels, as a training does."""
    folder.mkdir(parents=True)
    config = resolve_config("quick", {"model": "nano", **settings}).model_dump(mode="json")
    run = {"config": config, "model": {"dims": [4, 8, 8], "fusion": config["fusion"]}, "dataset": "data"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "metrics.csv").write_text("step,train_loss,val_accuracy\n1,0.7,\n2,0.5,0.75\n")
    rows, columns = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    classes = {}
    for number, label in enumerate(("cat", "dog")):
        hits = confusion[number][number]
        recall = hits / rows[number] if rows[number] else None
        f1 = 2 * hits / (rows[number] + columns[number]) if rows[number] + columns[number] else None
        precision = hits / columns[number] if columns[number] else None
        classes[label] = {"samples": rows[number], "precision": precision, "recall": recall, "f1": f1}
    metrics = {
        "accuracy": (confusion[0][0] + confusion[1][1]) / sum(rows), "loss": 0.5, "samples": sum(rows),
        "per_class": classes, "confusion": confusion,
    }  # fmt: skip
    result = {"labels": ["cat", "dog"], split: metrics, "steps": 2, "seconds": 90.0, "params": 1234}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(("correct", "samples"), [(0, 10), (45, 50), (50, 50), (731, 1558)])
def test_wilson_interval_equals_scipy(correct: int, samples: int) -> None:
    truth = binomtest(correct, samples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct / samples, samples) == pytest.approx((truth.low, truth.high), abs=1e-6)


def test_macro_f1_and_recall_equal_scikit_learn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [[30, 10], [2, 8]])
    metrics = read_metrics("test", json.loads((run / "result.json").read_text())["test"])
    labels, predicted = [0] * 40 + [1] * 10, [0] * 30 + [1] * 10 + [0] * 2 + [1] * 8
    assert metrics.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics.recall == pytest.approx(recall_score(labels, predicted, average="macro"))


def test_report_names_the_artificial_network_beside_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "cmqka-seed42", [[30, 10], [2, 8]])
    assert find_baseline(read_run(run)) is None
    write_run(tmp_path / "cnn_audio-seed42", [[25, 15], [2, 8]], fusion="cnn_audio")
    write_run(tmp_path / "cnn_concat-seed42", [[35, 5], [2, 8]], fusion="cnn_concat")
    write_run(tmp_path / "cnn_concat-seed43", [[40, 0], [0, 10]], fusion="cnn_concat", seed=43)
    write_run(tmp_path / "cnn_concat-val", [[40, 0], [0, 10]], "val", fusion="cnn_concat")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/result.json").write_text("{")
    baseline = find_baseline(read_run(run))
    assert baseline is not None
    assert baseline.name == "cnn_concat-seed42"
    page = report(run).read_text(encoding="utf-8")
    assert "cnn_concat-seed42; this run is 10.0 points below" in page
    assert "95 % interval 62.6 to 85.7 %" in page


def test_comparison_shows_results_and_only_the_settings_that_differ(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [[30, 10], [2, 8]])
    second = write_run(tmp_path / "b", [[38, 2], [2, 8]], fusion="concat", lr=0.5)
    context = collect_comparison([first, second])
    assert {name: values[1] for name, values in context["settings"]} == {"fusion": "concat", "lr": 0.5}
    assert [entry.change for entry in context["runs"]] == [0, pytest.approx(0.16)]
    path = report(first, against=[second])
    assert path == first / "comparison.html"
    page = path.read_text(encoding="utf-8")
    assert "2 runs compared" in page
    assert "+16.0" in page
    assert "a ends at 0.75, b ends at 0.75" in page
    assert "<code>weight_decay</code>" not in page


def test_comparison_shows_the_energy_of_the_runs_that_have_it(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, [[30, 10], [2, 8]]) for name in ("a", "b"))
    assert "million SOPs" not in report(first, against=[second]).read_text(encoding="utf-8")
    (second / "energy.json").write_text('{"sops_exact": 2345678.0, "mj_exact": 0.00742}')
    page = report(first, against=[second]).read_text(encoding="utf-8")
    assert re.findall(r'data-is="(?:million SOPs|mJ)"[^>]*>([^<]*)<', page) == ["–", "–", "2.35", "0.00742"]


def test_comparison_does_not_mix_splits_and_names_runs_uniquely(tmp_path: Path) -> None:
    first = write_run(tmp_path / "x/run", [[30, 10], [2, 8]])
    second = write_run(tmp_path / "y/run", [[38, 2], [2, 8]], "val")
    context = collect_comparison([first, second])
    assert [entry.metrics for entry in context["runs"]] == [None, None]
    assert [entry.name for entry in context["runs"]] == [str(first), str(second)]
    (second / "result.json").unlink()
    assert "not finished" in report(first, against=[second]).read_text(encoding="utf-8")


def test_comparison_refuses_too_many_runs_and_folders_without_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [[1, 0], [0, 1]])
    with pytest.raises(UsageError, match="Cannot compare 9 runs"):
        report(run, against=[run] * 8)
    with pytest.raises(AvdataError, match="No run in"):
        report(run, against=[tmp_path / "gone"])
