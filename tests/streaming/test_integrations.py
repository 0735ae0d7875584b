"""`avdata.webdataset` and `avdata.AVDataModule`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import webdataset as wds
from support.dataset_servers import Site, served
from torch.utils.data import DataLoader

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.streaming.batch import AVBatch, AVSample
from avdata.streaming.collate import collate
from avdata.streaming.integrations.lightning import AVDataModule
from avdata.streaming.integrations.webdataset import webdataset
from avdata.streaming.shard_reader import ShardReader


@pytest.fixture(params=["npy", "jpeg"])
def stored(request: pytest.FixtureRequest, synthetic_mock: Path, once: Any) -> Path:
    """A dataset of four shards per split or more, in each storage of frames."""
    settings = {"video": {"storage": request.param}, "shards": {"samples_per_shard": 8}}
    return once(  # type: ignore[no-any-return]
        f"webdataset-{request.param}",
        lambda out: avdata.prepare(
            "synthetic", source=synthetic_mock, output=out, config=settings, workers=0
        ),
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_webdataset_yields_the_samples_of_open(stored: Path, normalize: bool) -> None:
    expected = avdata.open(stored, "train", normalize=normalize)
    samples = list(webdataset(stored, "train", normalize=normalize))
    assert [sample.key for sample in samples] == expected.keys
    for sample, other in zip(samples, expected, strict=True):
        assert (sample.mel.dtype, sample.frames.dtype) == (torch.float32, torch.uint8)
        assert torch.equal(sample.mel, other.mel)
        assert torch.equal(sample.frames, other.frames)
        assert (sample.label, sample.metadata, sample.weight) == (other.label, other.metadata, 1.0)


def test_webdataset_divides_shards_among_ranks_and_workers(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        loader = DataLoader(webdataset(synthetic_set), batch_size=4, num_workers=2, collate_fn=collate)
        own = [key for batch in loader for key in batch.key]
        assert 0 < len(own) < avdata.open(synthetic_set).num_samples
        keys += own
    assert Counter(keys) == Counter(avdata.open(synthetic_set, rank=0, world_size=1).keys)


def test_webdataset_shuffles_and_batches_with_stages_of_webdataset(synthetic_set: Path) -> None:
    batches = list(webdataset(synthetic_set, shardshuffle=10).shuffle(100).batched(4, collation_fn=collate))
    keys = [key for batch in batches for key in batch.key]
    expected = avdata.open(synthetic_set).keys
    assert isinstance(batches[0], AVBatch)
    assert keys != expected
    assert sorted(keys) == sorted(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_yields_the_samples_of_open_over_http(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    samples: list[AVSample] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with served(Site(stored)) as site:
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            pipeline = webdataset(site.url, "train", cache=tmp_path / str(rank))
            loader = DataLoader(pipeline, batch_size=None, num_workers=workers, collate_fn=unchanged)
            samples += loader
        fetched = [shard for shard, *_ in site.asked_for(".tar")]
    expected = avdata.open(stored, "train", rank=0, world_size=1)
    # Each rank and worker fetched only its shards.
    assert sorted(fetched) == sorted(shard["path"] for shard in expected.info["splits"]["train"]["shards"])
    assert sorted(sample.key for sample in samples) == sorted(expected.keys)
    for sample in samples:
        other = expected.find(sample.key)
        assert torch.equal(sample.mel, other.mel)
        assert torch.equal(sample.frames, other.frames)
        assert (sample.label, sample.metadata) == (other.label, other.metadata)


def unchanged(sample: AVSample) -> AVSample:
    return sample


def test_webdataset_reads_and_divides_shards_by_webdataset(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    # Not by the reader of `avdata.open`.
    monkeypatch.setattr("avdata.shards.members.read_members", refuse)
    monkeypatch.setattr("avdata.streaming.sample_reader.read_members", refuse)
    pipeline = webdataset(synthetic_set, "val")
    assert isinstance(pipeline, wds.WebDataset)
    assert [sample.key for sample in pipeline] == avdata.open(synthetic_set, "val").keys
    for name in ("split_by_node", "split_by_worker"):
        with monkeypatch.context() as patch:
            patch.setattr(wds, name, lambda shards: iter(()))
            assert list(webdataset(synthetic_set, "val")) == []


@pytest.mark.parametrize(
    ("split", "condition"),
    [
        ("validation+test", None),
        ("train[:10%]", None),
        ("train[10:20]+test[-3:]", None),
        ("train", "label == 1"),
        ("train[5:30]+val", lambda row: row["label"] == 0),
        ("train", "label == 99"),
    ],
)
def test_webdataset_selects_the_samples_of_open(synthetic_set: Path, split: str, condition: Any) -> None:
    samples = webdataset(synthetic_set, split, filter=condition)
    assert [sample.key for sample in samples] == avdata.open(synthetic_set, split, filter=condition).keys


def test_webdataset_divides_a_slice_among_workers_and_reads_no_other_shards(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = webdataset(synthetic_set, "train[:20]")
    loader = DataLoader(samples, batch_size=None, num_workers=2, collate_fn=unchanged)
    expected = avdata.open(synthetic_set, "train[:20]")
    assert sorted(sample.key for sample in loader) == sorted(expected.keys)
    read: list[str] = []
    local_path = ShardReader.local_path

    def recorded(reader: ShardReader, shard: str) -> Path:
        read.append(shard)
        return local_path(reader, shard)

    monkeypatch.setattr(ShardReader, "local_path", recorded)
    assert len(list(samples.slice(7).repeat(2))) == 14
    assert 1 <= len(set(read)) <= len(set(expected.shard_of.tolist()))


def test_webdataset_names_an_unknown_split(synthetic_set: Path) -> None:
    with pytest.raises(UsageError, match="Unknown split 'valid'"):
        webdataset(synthetic_set, "valid")


def test_webdataset_names_the_command_that_installs_it(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(AvdataError, match="not installed") as caught:
        webdataset(synthetic_set)
    assert caught.value.hint == "pip install webdataset"


class Model(lightning.LightningModule):
    """Model of one weight that records the batches of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.batches["train"].append(batch)
        return (self.weight * batch.mel.mean()).sum()

    def validation_step(self, batch: Any, number: int) -> None:
        self.batches["val"].append(batch)

    def test_step(self, batch: Any, number: int) -> None:
        self.batches["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_data_module_feeds_a_trainer(synthetic_set: Path, tmp_path: Path) -> None:
    data, model = AVDataModule(synthetic_set, batch_size=4, num_workers=0, seed=3), Model()
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=2,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    expected = iter(avdata.open(synthetic_set, "train", shuffle=True, seed=3).loader(4))
    assert [batch.key for batch in model.batches["train"]] == [next(expected).key for _ in range(2)]
    assert model.batches["val"][0].key == avdata.open(synthetic_set, "val").keys[:4]
    keys = [
        key
        for batch in model.batches["test"]
        for key, weight in zip(batch.key, batch.weight, strict=True)
        if weight
    ]
    assert keys == avdata.open(synthetic_set, "test").keys


def test_data_module_overfits_the_same_batches_in_each_epoch(synthetic_set: Path, tmp_path: Path) -> None:
    data, model = AVDataModule(synthetic_set, batch_size=4, num_workers=0), Model()
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=2,
        enable_model_summary=False, enable_checkpointing=False, overfit_batches=2,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="overfit_batches disables the shuffling"):
        trainer.fit(model, datamodule=data)
    keys = avdata.open(synthetic_set, "train").keys
    assert [batch.key for batch in model.batches["train"]] == [keys[:4], keys[4:8]] * 2
    assert data.splits["train"].order.shuffle


def test_data_module_moves_batches_to_a_device(synthetic_set: Path) -> None:
    data = AVDataModule(synthetic_set, batch_size=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, AVBatch)
    assert {moved.mel.device.type, moved.frames.device.type, moved.weight.device.type} == {"meta"}


def test_data_module_passes_options_to_open(synthetic_set: Path) -> None:
    data = AVDataModule(synthetic_set, shuffle=False, normalize=False, train_options={"filter": "label == 1"})
    data.setup("fit")
    assert data.splits["train"].condition == "label == 1"
    assert data.splits["val"].condition is None
    assert not data.splits["train"].order.shuffle
    assert torch.equal(data.splits["val"][0].mel, avdata.open(synthetic_set, "val", normalize=False)[0].mel)


def test_data_module_collates_all_splits_and_transforms_batches_of_train_only(synthetic_set: Path) -> None:
    data = AVDataModule(
        synthetic_set, batch_size=2, num_workers=0, collate_fn=lambda samples: [item.key for item in samples],
        batch_transform=lambda keys, generator: ("changed", keys),
    )  # fmt: skip
    data.setup("fit")
    changed, keys = next(iter(data.train_dataloader()))
    assert (changed, len(keys)) == ("changed", 2)
    assert set(keys) <= set(data.splits["train"].keys)
    validation = data.val_dataloader()
    assert not isinstance(validation, list)
    assert next(iter(validation)) == list(data.splits["val"].keys)[:2]


def test_data_module_names_the_missing_setup(synthetic_set: Path) -> None:
    data = AVDataModule(synthetic_set)
    assert repr(data) == f"AVDataModule('{synthetic_set}', batch_size=32)"
    with pytest.raises(UsageError, match=r"Split test of .* is not open"):
        data.test_dataloader()
