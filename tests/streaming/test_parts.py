"""Several datasets that are opened as one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.storage.remote import open_filesystem


@pytest.fixture(params=["pattern", "list"])
def location(request: pytest.FixtureRequest, parts: Path) -> Any:
    return f"{parts}/part-*" if request.param == "pattern" else sorted(parts.iterdir())


def test_open_reads_each_sample_of_all_parts_once(location: Any, synthetic_set: Path) -> None:
    data, undivided = avdata.open(location, shuffle=True), avdata.open(synthetic_set)
    assert sorted(data.keys) == sorted(undivided.keys)
    for epoch in range(2):
        data.set_epoch(epoch)
        keys = [
            key
            for batch in data.loader(5)
            for key, weight in zip(batch.key, batch.weight, strict=True)
            if weight
        ]
        assert sorted(keys) == sorted(undivided.keys)
    for key in undivided.keys[:5]:
        assert data.find(key).mel.equal(undivided.find(key).mel)


def test_open_divides_an_epoch_of_parts_among_ranks_and_resumes(parts: Path) -> None:
    def ranks() -> list[Any]:
        return [
            avdata.open(f"{parts}/part-*", shuffle=True, rank=rank, world_size=2).loader(4) for rank in (0, 1)
        ]

    complete = [[batch.key for batch in loader] for loader in ranks()]
    keys = [key for batches in complete for batch in batches for key in batch]
    assert sorted(set(keys)) == sorted(avdata.open(f"{parts}/part-*").keys)
    for loader, resumed, expected in zip(ranks(), ranks(), complete, strict=True):
        next(iter(loader))
        resumed.load_state_dict(loader.state_dict())
        assert [batch.key for batch in resumed] == expected[1:]


def test_open_filters_slices_and_weights_parts_as_one_dataset(parts: Path, synthetic_set: Path) -> None:
    pattern = f"{parts}/part-*"
    condition = "label_name == 'same' and nbytes > 0"
    for expected, found in (
        (avdata.open(synthetic_set, filter=condition), avdata.open(pattern, filter=condition)),
        (
            avdata.open(synthetic_set, "train+test").filter(lambda row: row["label"] == 1),
            avdata.open(pattern, "train+test").filter(lambda row: row["label"] == 1),
        ),
    ):
        assert sorted(found.keys) == sorted(expected.keys)
    halves = [avdata.open(pattern, part).keys for part in ("train[:50%]", "train[50%:]")]
    assert halves[0] + halves[1] == avdata.open(pattern).keys
    weights = avdata.open(pattern, weights="label").weights
    assert np.bincount(avdata.open(pattern).label_of(np.arange(32)), weights).tolist() == pytest.approx(
        [1, 1]
    )


def test_webdataset_reads_parts(parts: Path) -> None:
    keys = [sample.key for sample in avdata.webdataset(f"{parts}/part-*", "test")]
    assert sorted(keys) == sorted(avdata.open(f"{parts}/part-*", "test").keys)


def test_open_reads_parts_from_a_store(bucket: str, parts: Path, tmp_path: Path) -> None:
    files, base = open_filesystem(f"{bucket}/parts")
    files.put(f"{parts}/", f"{base}/", recursive=True)
    data = avdata.open(f"{bucket}/parts/*", "val", cache=tmp_path)
    local = avdata.open(f"{parts}/part-*", "val")
    assert data.keys == local.keys
    assert data[0].mel.equal(local[0].mel)  # by range, with the checksum of the index
    assert sorted(key for batch in data.loader(2) for key in batch.key) == sorted(local.keys)


def test_open_warns_about_missing_parts(parts: Path, caplog: pytest.LogCaptureFixture) -> None:
    avdata.open([parts / "part-1", parts / "part-3"])
    assert "Parts are missing: 2/3" in caplog.text


def test_open_rejects_datasets_with_common_samples(cremad_set: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cremad_set, tmp_path / "copy")
    with pytest.raises(AvdataError, match=r"Sample \S+ is in several datasets"):
        avdata.open([cremad_set, copy])


def test_open_rejects_parts_of_other_recipes_and_empty_patterns(
    cremad_set: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(AvdataError, match="Config mismatch of parts"):
        avdata.open([cremad_set, synthetic_set])
    with pytest.raises(UsageError, match="No prepared dataset matches"):
        avdata.open(f"{tmp_path}/*")
    with pytest.raises(UsageError, match="Cannot open 0 datasets"):
        avdata.open([])


def test_open_merges_the_statistics_of_parts_exactly(parts: Path) -> None:
    """The reference is numpy over all mels."""
    data = avdata.open(f"{parts}/part-*", normalize=False)
    mels = np.concatenate([sample.mel.numpy()[:, 0] for sample in data])
    stats = data.info["mel_stats"]
    np.testing.assert_allclose(mels.mean(axis=(0, 2), dtype=np.float64), stats["mean"], rtol=1e-12)
    np.testing.assert_allclose(mels.std(axis=(0, 2), dtype=np.float64), stats["std"], rtol=1e-9)


def test_open_reads_datasets_of_different_clips(synthetic_mock: Path, tmp_path: Path) -> None:
    header, *rows = (synthetic_mock / "clips.csv").read_text().splitlines(keepends=True)
    for number in (0, 1):
        source = shutil.copytree(synthetic_mock, tmp_path / f"raw{number}")
        (source / "clips.csv").write_text(header + "".join(rows[number::2]))
        avdata.prepare(
            "synthetic", source=source, output=tmp_path / f"set{number}", checksums=False, workers=0
        )
    data = avdata.open(f"{tmp_path}/set?", "train+val+test")
    assert sorted(data.keys) == sorted(row.split(",")[0] for row in rows)
    assert data.info["splits"]["train"]["samples"] == avdata.open(f"{tmp_path}/set?").num_samples


def test_stream_keeps_few_bytes_of_a_sample_besides_its_key(synthetic_set: Path) -> None:
    index = avdata.open(synthetic_set, "train+val+test")._index
    arrays = [index.row, index.label, index.offset, index.nbytes, index.absent, index.shard_of]
    assert sum(array.nbytes for array in arrays) <= 32 * len(index)
