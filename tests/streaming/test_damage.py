"""Damaged datasets: errors name the shard and the sample, and no damaged sample is returned."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import avdata
from avdata.errors import AvdataError
from avdata.shards.reader import read_index, read_info
from avdata.streaming.batch import AVSample


@pytest.fixture
def dataset(synthetic_set: Path, tmp_path: Path) -> Path:
    """A copy of a dataset, to damage."""
    return shutil.copytree(synthetic_set, tmp_path / "set")


def row_of(root: Path, number: int = 3) -> dict:
    return [row for row in read_index(root).to_pylist() if row["split"] == "train"][number]


def overwrite(root: Path, row: dict, at: int, data: bytes, member: str = "mel.npy") -> None:
    """Overwrite a member of a sample, `at` bytes after the start of its tar header."""
    with (root / row["shard"]).open("r+b") as stream:
        with tarfile.open(fileobj=stream) as tar:
            begin = tar.getmember(f"{row['key']}.{member}").offset
        stream.seek(begin + at)
        stream.write(data)


def summary(sample: AVSample) -> tuple[str, float, str | None]:
    return sample.key, sample.weight, sample.metadata.get("skipped")


def read_all(root: Path, **options: object) -> list:
    return list(avdata.open(root, "train", **options).loader(4))


def test_open_names_a_truncated_shard_with_its_sizes(dataset: Path) -> None:
    row = row_of(dataset)
    path = dataset / row["shard"]
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size - 10_240)
    with pytest.raises(
        AvdataError, match=rf"Size mismatch .*{row['shard']}: {size - 10_240:,} bytes, expected {size:,}"
    ):
        read_all(dataset)


def test_open_names_a_missing_shard(dataset: Path) -> None:
    row = row_of(dataset)
    (dataset / row["shard"]).unlink()
    with pytest.raises(AvdataError, match=row["shard"]):
        read_all(dataset)


def test_read_detects_a_shard_replaced_by_another(dataset: Path) -> None:
    first, *others = sorted((dataset / "train").glob("*.tar"))
    same_size = next(path for path in others if path.stat().st_size == first.stat().st_size)
    shutil.copy(same_size, first)
    with pytest.raises(AvdataError, match=r"Cannot read sample \S+ in train/\S+: .*another sample"):
        read_all(dataset)


def test_read_names_shard_and_key_of_a_damaged_header(dataset: Path) -> None:
    row = row_of(dataset)
    overwrite(dataset, row, 0, b"\xff" * 64)
    with pytest.raises(AvdataError, match=rf"Cannot read sample {row['key']} in {row['shard']}"):
        read_all(dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_names_shard_and_key_in_errors_of_workers(dataset: Path, workers: int) -> None:
    row = row_of(dataset)
    overwrite(dataset, row, 512, b"not an array")
    with pytest.raises(AvdataError, match=rf"Cannot read sample {row['key']} in {row['shard']}"):
        list(avdata.open(dataset, "train").loader(4, num_workers=workers))


def test_find_names_shard_and_key_of_invalid_json(dataset: Path) -> None:
    row = row_of(dataset)
    overwrite(dataset, row, 512, b"[}", member="json")
    with pytest.raises(AvdataError, match=rf"Cannot read sample {row['key']} in {row['shard']}"):
        avdata.open(dataset, "train").find(row["key"])


def test_read_never_unpickles_an_object_array(dataset: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (dataset / "executed",))

    row = row_of(dataset)
    head = np.lib.format.magic(1, 0) + (118).to_bytes(2, "little")
    head += b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    overwrite(dataset, row, 512, head + pickle.dumps(np.array([Trap()])))
    with pytest.raises(AvdataError, match="type object"):
        read_all(dataset)
    assert not (dataset / "executed").exists()


def test_open_detects_an_index_of_another_preparation(dataset: Path, cremad_set: Path) -> None:
    shutil.copy(cremad_set / "index.parquet", dataset / "index.parquet")
    with pytest.raises(AvdataError, match=r"Checksum mismatch of index.parquet"):
        read_all(dataset)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_loader_skips_samples_with_equal_batch_counts_and_reports_them(
    dataset: Path, world: int, workers: int
) -> None:
    rows = [row_of(dataset, number) for number in (1, 2, 9)]
    for row in rows:
        overwrite(dataset, row, 512, b"not an array")
    parts = [avdata.open(dataset, "train", rank=r, world_size=world, on_error="skip") for r in range(world)]
    loaders = [part.loader(4, num_workers=workers) for part in parts]
    batches = [list(loader) for loader in loaders]
    assert len({len(part) for part in batches}) == 1
    got = [
        key
        for part in batches
        for batch in part
        for key, weight in zip(batch.key, batch.weight, strict=True)
        if weight
    ]
    bad = {row["key"] for row in rows}
    assert len(got) == len(set(got)) == read_info(dataset)["splits"]["train"]["samples"] - len(bad)
    assert not bad & set(got)
    messages = [message for loader in loaders for message in loader.skipped]
    assert all(
        any(f"sample {row['key']} in {row['shard']}" in message for message in messages) for row in rows
    )
    assert {message.split()[3] for message in messages} == bad


@pytest.mark.parametrize("workers", [0, 2])
def test_iteration_substitutes_skipped_samples_with_weight_0(dataset: Path, workers: int) -> None:
    rows = [row_of(dataset, number) for number in (0, 2, 9)]
    for row in rows:
        overwrite(dataset, row, 512, b"not an array")
    data = avdata.open(dataset, "train", on_error="skip")
    got = list(DataLoader(data, batch_size=None, num_workers=workers, collate_fn=summary))
    bad = {row["key"] for row in rows}
    assert sorted(key for key, weight, _ in got if weight) == sorted(set(data.keys) - bad)
    skipped = [(key, reason) for key, weight, reason in got if not weight]
    assert {reason.split()[3] for _, reason in skipped} == bad
    assert len(skipped) == len(bad)
    assert not {key for key, _ in skipped} & bad


def test_iteration_raises_if_no_sample_is_readable(dataset: Path) -> None:
    rows = [row for row in read_index(dataset).to_pylist() if row["split"] == "train"]
    for row in rows:
        overwrite(dataset, row, 512, b"not an array")
    with pytest.raises(AvdataError, match=f"Cannot read sample {rows[0]['key']} in"):
        next(iter(avdata.open(dataset, "train", on_error="skip")))


def test_loader_pads_a_batch_without_readable_samples(dataset: Path) -> None:
    for number in range(4):
        overwrite(dataset, row_of(dataset, number), 512, b"not an array")
    first = next(iter(avdata.open(dataset, "train", on_error="skip").loader(4)))
    assert first.weight.tolist() == [0, 0, 0, 0]
    assert not first.mel.isnan().any()
