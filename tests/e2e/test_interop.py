"""webdataset and datasets read the shards without avdata."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdataset

from avdata.shards.reader import read_index, read_info


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_shards(cremad_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # webdataset parses paths as URLs, and the temporary directory may contain special characters.
    monkeypatch.chdir(cremad_set)
    shards = [f"train/{path.name}" for path in sorted(cremad_set.glob("train/*.tar"))]
    got = list(webdataset.WebDataset(shards, shardshuffle=False).decode("torchrgb"))
    rows = [row for row in read_index(cremad_set).to_pylist() if row["split"] == "train"]
    info = read_info(cremad_set)
    assert [sample["__key__"] for sample in got] == [row["key"] for row in rows]
    for sample, row in zip(got, rows, strict=True):
        assert sample["cls"] == row["label"]
        assert list(sample["mel.npy"].shape) == info["shape"]["mel"]
        steps, height, width, _ = info["shape"]["frames"]
        assert sample["frames.jpg"].shape == (3, height, steps * width)
        assert sample["json"]["label_name"] == row["label_name"]


def test_datasets_reads_shards(synthetic_set: Path, tmp_path: Path) -> None:
    import datasets

    files = {split: str(synthetic_set / split / "*.tar") for split in ("train", "test")}
    loaded = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path))
    rows = read_index(synthetic_set).to_pylist()
    for split in ("train", "test"):
        held = {row["key"]: row for row in rows if row["split"] == split}
        assert {sample["__key__"] for sample in loaded[split]} == held.keys()
        for sample in loaded[split]:
            assert sample["cls"] == held[sample["__key__"]]["label"]
            assert sample["json"]["group"] == held[sample["__key__"]]["group"]


def test_datasets_streams_samples_with_different_metadata(cremad_set: Path) -> None:
    import datasets

    files = {"train": str(cremad_set / "train" / "*.tar")}
    stream = datasets.load_dataset("webdataset", data_files=files, streaming=True)["train"]
    assert sum(1 for _ in stream) == read_info(cremad_set)["splits"]["train"]["samples"]
