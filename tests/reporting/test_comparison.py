from __future__ import annotations

from pathlib import Path

import pytest

from avdata.reporting.comparison import compare_datasets
from avdata.shards.dataset_files import LocalDataset
from avdata.shards.reader import read_info


def test_a_dataset_compared_with_itself_has_no_differences(report_dataset: Path) -> None:
    info = read_info(report_dataset)
    result = compare_datasets(LocalDataset(report_dataset), LocalDataset(report_dataset))
    assert (result.settings, result.metadata, result.counts, result.features.note) == ([], [], [], "")
    assert result.both == result.same_bytes == sum(split["samples"] for split in info["splits"].values())
    assert (result.only_a, result.only_b, result.moved, result.relabeled) == (0, 0, 0, 0)
    assert {name for name, _, _ in result.features.differences} == {"mel", "frames"}
    assert all((mean, largest) == (0, 0) for _, mean, largest in result.features.differences)


def test_compare_datasets_finds_settings_samples_and_features_that_differ(
    report_dataset: Path, changed_dataset: Path
) -> None:
    result = compare_datasets(LocalDataset(report_dataset), LocalDataset(changed_dataset))
    assert ("audio.amin", 1e-10, 1e-6) in result.settings
    assert result.only_a > 0
    assert (result.both, result.same_bytes) == (16, 0)
    largest = {name: value for name, _, value in result.features.differences}
    assert largest["mel"] == pytest.approx(40, abs=1)  # 10·log10 of the ratio of both amin
    assert largest["frames"] == 0
