"""What is wrong with a set's bytes is noticed, named, and never delivered."""

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
def mine(synthetic_set: Path, tmp_path: Path) -> Path:
    return shutil.copytree(synthetic_set, tmp_path / "set")


def row_of(root: Path, number: int = 3) -> dict:
    return [row for row in read_index(root).to_pylist() if row["split"] == "train"][number]


def overwrite(root: Path, row: dict, at: int, data: bytes, member: str = "mel.npy") -> None:
    """Write over a member of a sample, `at` bytes after the start of its tar header."""
    with (root / row["shard"]).open("r+b") as stream:
        with tarfile.open(fileobj=stream) as tar:
            begin = tar.getmember(f"{row['key']}.{member}").offset
        stream.seek(begin + at)
        stream.write(data)


def told(sample: AVSample) -> tuple[str, float, str | None]:
    return sample.key, sample.weight, sample.metadata.get("skipped")


def read_all(root: Path, **options: object) -> list:
    return list(avdata.open(root, "train", **options).loader(4))


def test_a_truncated_shard_is_named_with_its_sizes(mine: Path) -> None:
    row = row_of(mine)
    path = mine / row["shard"]
    whole = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(whole - 10_240)
    with pytest.raises(AvdataError, match=rf"{row['shard']}.* has {whole - 10_240:,} bytes; .*{whole:,}"):
        read_all(mine)


def test_a_missing_shard_is_named(mine: Path) -> None:
    row = row_of(mine)
    (mine / row["shard"]).unlink()
    with pytest.raises(AvdataError, match=row["shard"]):
        read_all(mine)


def test_a_shard_in_anothers_place_is_noticed_by_its_members(mine: Path) -> None:
    first, *others = sorted((mine / "train").glob("*.tar"))
    same_size = next(path for path in others if path.stat().st_size == first.stat().st_size)
    shutil.copy(same_size, first)
    with pytest.raises(AvdataError, match=r"sample \S+ in train/\S+ cannot be read: .*another sample"):
        read_all(mine)


def test_a_damaged_header_is_named_by_shard_and_key(mine: Path) -> None:
    row = row_of(mine)
    overwrite(mine, row, 0, b"\xff" * 64)
    with pytest.raises(AvdataError, match=rf"sample {row['key']} in {row['shard']} cannot be read"):
        read_all(mine)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_of_any_worker_names_shard_and_key(mine: Path, workers: int) -> None:
    row = row_of(mine)
    overwrite(mine, row, 512, b"not an array")
    with pytest.raises(AvdataError, match=rf"sample {row['key']} in {row['shard']} cannot be read"):
        list(avdata.open(mine, "train").loader(4, num_workers=workers))


def test_facts_that_are_no_json_are_named_by_shard_and_key(mine: Path) -> None:
    row = row_of(mine)
    overwrite(mine, row, 512, b"[}", member="json")
    with pytest.raises(AvdataError, match=rf"sample {row['key']} in {row['shard']} cannot be read"):
        avdata.open(mine, "train").find(row["key"])


def test_an_array_of_objects_is_never_unpickled(mine: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (mine / "executed",))

    row = row_of(mine)
    head = np.lib.format.magic(1, 0) + (118).to_bytes(2, "little")
    head += b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    overwrite(mine, row, 512, head + pickle.dumps(np.array([Trap()])))
    with pytest.raises(AvdataError, match="type object"):
        read_all(mine)
    assert not (mine / "executed").exists()


def test_an_index_of_another_preparation_is_noticed(mine: Path, cremad_set: Path) -> None:
    shutil.copy(cremad_set / "index.parquet", mine / "index.parquet")
    with pytest.raises(AvdataError, match=r"not the one that its dataset.json was written with"):
        read_all(mine)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_keeps_batch_counts_equal_and_reports_what_was_skipped(
    mine: Path, world: int, workers: int
) -> None:
    rows = [row_of(mine, number) for number in (1, 2, 9)]
    for row in rows:
        overwrite(mine, row, 512, b"not an array")
    parts = [avdata.open(mine, "train", rank=r, world_size=world, on_error="skip") for r in range(world)]
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
    assert len(got) == len(set(got)) == read_info(mine)["splits"]["train"]["samples"] - len(bad)
    assert not bad & set(got)
    told = [message for loader in loaders for message in loader.skipped]
    assert all(any(f"sample {row['key']} in {row['shard']}" in message for message in told) for row in rows)
    assert {message.split()[1] for message in told} == bad


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_loader_is_given_another_sample_of_weight_0_for_one_that_is_skipped(
    mine: Path, workers: int
) -> None:
    rows = [row_of(mine, number) for number in (0, 2, 9)]
    for row in rows:
        overwrite(mine, row, 512, b"not an array")
    data = avdata.open(mine, "train", on_error="skip")
    got = list(DataLoader(data, batch_size=None, num_workers=workers, collate_fn=told))
    bad = {row["key"] for row in rows}
    assert sorted(key for key, weight, _ in got if weight) == sorted(set(data.keys) - bad)
    skipped = [(key, reason) for key, weight, reason in got if not weight]
    assert {reason.split()[1] for _, reason in skipped} == bad
    assert len(skipped) == len(bad)
    assert not {key for key, _ in skipped} & bad


def test_a_set_of_which_nothing_can_be_read_ends_with_a_samples_name(mine: Path) -> None:
    rows = [row for row in read_index(mine).to_pylist() if row["split"] == "train"]
    for row in rows:
        overwrite(mine, row, 512, b"not an array")
    with pytest.raises(AvdataError, match=f"sample {rows[0]['key']} in"):
        next(iter(avdata.open(mine, "train", on_error="skip")))


def test_a_batch_whose_samples_are_all_bad_is_empty_padding(mine: Path) -> None:
    for number in range(4):
        overwrite(mine, row_of(mine, number), 512, b"not an array")
    first = next(iter(avdata.open(mine, "train", on_error="skip").loader(4)))
    assert first.weight.tolist() == [0, 0, 0, 0]
    assert not first.mel.isnan().any()
