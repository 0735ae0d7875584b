from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.splits import copy_splits
from torch import nn

from avdata.errors import AvdataError, UsageError
from snnergy.analysis.comparison import Row, compare_fusions, p_values, paired_p_value, training_bytes
from snnergy.analysis.energy import Energy, measure_energy
from snnergy.data import Batch, audio_video_batches, open_split
from snnergy.training.checkpoint import load_network
from snnergy.training.config import TrainConfig

SCORES = {"weak": (0.5, 0.52, 0.49), "best": (0.9, 0.91, 0.93), "close": (0.89, 0.92, 0.91)}

Quick = Callable[..., TrainConfig]


def counted(out: Path, fusion: str) -> Energy:
    """What a run's chosen network spends, counted anew on the whole test split."""
    network, _ = load_network(out / "runs" / f"{fusion}-seed42" / "best.ckpt")
    loader = open_split(
        json.loads((out / "runs" / f"{fusion}-seed42" / "run.json").read_text())["dataset"], "test"
    )
    return measure_energy(network.eval(), audio_video_batches(loader.loader(8, num_workers=0), 16))


def test_compare_writes_means_over_seeds_and_repeats_no_run(
    tiny_set: Path, tmp_path: Path, quick: Quick
) -> None:
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)

    def table() -> list[dict[str, str]]:
        with (tmp_path / "table.csv").open() as lines:
            return list(csv.DictReader(lines))

    options = {"fusions": ["concat", "audio"], "seeds": 2, "device": "cpu", "progress": progress}
    rows = compare_fusions(tiny_set, tmp_path, quick(steps=2), **options)
    assert sorted(set(stages)) == [f"{name} seed {seed}" for name in ("audio", "concat") for seed in (42, 43)]
    for row, written in zip(rows, table(), strict=True):
        assert float(written["accuracy"]) == pytest.approx(statistics.fmean(row.accuracy), abs=1e-6)
        assert float(written["std"]) == pytest.approx(statistics.stdev(row.accuracy), abs=1e-6)
        assert float(written["uar"]) == pytest.approx(statistics.fmean(row.uar), abs=1e-6)
        assert float(written["macro_f1"]) == pytest.approx(statistics.fmean(row.macro_f1), abs=1e-6)
    concat, audio = rows
    assert concat.params > audio.params
    assert concat.megabytes > audio.megabytes
    assert concat.energy.sops() > audio.energy.sops()
    for row, written in zip(rows, table(), strict=True):
        assert float(written["sops_exact"]) == pytest.approx(counted(tmp_path, row.fusion).sops(), abs=0.5)
        for name, value in row.energy.totals().items():
            assert float(written[name]) == pytest.approx(value, rel=1e-6)
    said = (tmp_path / "table.md").read_text()
    assert f"| {concat.energy.sops() / 1e6:,.2f} | {concat.energy.millijoules():.4g} |" in said
    assert "| concat |" in said
    assert "±" in said
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    stages.clear()
    # How batches are made ahead changes no figure.
    again = compare_fusions(tiny_set, tmp_path, quick(steps=2, workers=1), **options)
    assert not stages
    assert [row.accuracy for row in again] == [row.accuracy for row in rows]
    with pytest.raises(UsageError, match="Settings differ"):
        compare_fusions(tiny_set, tmp_path, quick(steps=3), **options)
    next(tmp_path.glob("runs/*/result.json")).write_text("{")
    with pytest.raises(AvdataError, match=r"Cannot read .*result\.json"):
        compare_fusions(tiny_set, tmp_path, quick(steps=2), **options)


def test_compare_rejects_unknown_fusion_before_training(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(UsageError, match="Unknown fusion 'cmqkb'"):
        compare_fusions(tiny_set, tmp_path, quick(), fusions=["cmqka", "cmqkb"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fusions", "changes", "said"),
    [
        (["concat", "audio"], {"ogm_ge": 0.8}, "ogm_ge does not support"),
        (["cmqka", "concat"], {"model_options": {"fusion_stages": [3]}}, "has no fusion stages"),
    ],
)
def test_compare_rejects_incompatible_settings_before_training(
    fusions: list[str], changes: dict, said: str, tiny_set: Path, tmp_path: Path, quick: Quick
) -> None:
    with pytest.raises(UsageError, match=said):
        compare_fusions(tiny_set, tmp_path, quick(steps=1, **changes), fusions=fusions, seeds=1, device="cpu")
    assert not list(tmp_path.iterdir())


def test_compare_rejects_dataset_without_val_and_test(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    bare = copy_splits(tiny_set, tmp_path / "bare", "train")
    with pytest.raises(AvdataError, match="neither a val nor a test split"):
        compare_fusions(bare, tmp_path / "out", quick(steps=1), fusions=["audio"], seeds=1, device="cpu")
    assert not (tmp_path / "out").exists()


def test_compare_rejects_runs_of_a_dataset_that_was_prepared_again(
    tiny_run: Path, tiny_set: Path, tmp_path: Path, quick: Quick
) -> None:
    run = tmp_path / "runs" / "audio-seed42"
    run.mkdir(parents=True)
    stored = json.loads((tiny_run / "run.json").read_text())
    stored["facts"]["labels"].reverse()
    (run / "run.json").write_text(json.dumps(stored))
    with pytest.raises(AvdataError, match="not the one of the run: its labels differ"):
        compare_fusions(tiny_set, tmp_path, quick(), fusions=["concat", "audio"], seeds=1, device="cpu")
    assert list((tmp_path / "runs").iterdir()) == [run]


def test_compare_rejects_several_processes(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        compare_fusions(tiny_set, tmp_path, quick(), fusions=["audio"])


def test_training_bytes_counts_each_storage_once() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
            # Both products keep the input, and each its own sigmoid's result.
            return self.layer(audio).sigmoid() + self.layer(audio).sigmoid()

    rows = torch.zeros(8, 4)
    batch = Batch(rows, rows, torch.zeros(8, dtype=torch.int64), torch.ones(8))
    assert training_bytes(Two(), batch) == 3 * rows.nbytes


def test_p_value_is_that_of_a_paired_t_test() -> None:
    # Student's own data (1908), Cushny and Peebles' hours of sleep: t = -4.0621 at 9 degrees of freedom.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert paired_p_value(first, second) == pytest.approx(0.002833, abs=1e-6)
    assert paired_p_value([0.5], [0.6]) is None
    assert paired_p_value([0.5, 0.6], [0.6, 0.7]) is None


def test_p_values_are_against_the_best_fusion() -> None:
    cost = Energy((), 0.0, 0.0, {}, 0.0, 1.0, 1)
    rows = [Row(name, scores, scores, scores, 1, 1.0, 1.0, cost) for name, scores in SCORES.items()]
    values = p_values(rows)
    assert values[1] is None
    assert values[0] == paired_p_value(SCORES["weak"], SCORES["best"])
    assert values[2] == paired_p_value(SCORES["close"], SCORES["best"])
    assert values[0] < values[2]
