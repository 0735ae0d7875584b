"""Card and Croissant metadata of a published dataset, and its reading by other libraries."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import DatasetCard
from support.hub_server import HubServer

import avdata
from avdata.shards.reader import read_index, read_info

REPO = "me/cremad-av"


@pytest.fixture
def published(hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    avdata.publish(own_set, REPO)
    return own_set


def test_datasets_streams_frames_and_fields_from_the_hub(published: Path) -> None:
    import datasets

    stream = datasets.load_dataset(REPO, streaming=True)
    assert {"train", "validation", "test"} == set(stream)
    train, info = stream["train"], read_info(published)
    features = train.features
    assert isinstance(features["frames.jpg"], datasets.Image)
    assert features["cls"].names == info["labels"]
    assert features["json"]["window_start"] == datasets.Value("float64")
    assert features["json"]["extras"]["actor"] == datasets.Value("string")
    rows = [row for row in read_index(published).to_pylist() if row["split"] == "train"]
    got = list(train)
    assert [(one["__key__"].rpartition("/")[2], one["cls"]) for one in got] == [
        (row["key"], row["label"]) for row in rows
    ]
    steps, height, width, _ = info["shape"]["frames"]
    assert all(one["frames.jpg"].size == (steps * width, height) for one in got)


@pytest.mark.skipif(
    huggingface_hub.__version__ < "2", reason="there, validate() asks the real Hub whatever the endpoint"
)
def test_card_passes_the_validation_of_the_hub(hub: HubServer, published: Path) -> None:
    card = DatasetCard.load(published / "README.md")
    card.validate(repo_type="dataset")
    assert "POST /api/validate-yaml" in hub.requests


def test_card_header_has_the_metadata_of_the_hub(published: Path) -> None:
    data, info = DatasetCard.load(published / "README.md").data.to_dict(), read_info(published)
    assert (data["license"], data["pretty_name"]) == ("odbl", "CREMA-D")
    assert data["task_categories"]
    assert data["size_categories"] == ["n<1K"]
    counted = {split["name"]: split["num_examples"] for split in data["dataset_info"]["splits"]}
    names = {"train": "train", "val": "validation", "test": "test"}
    assert counted == {names[name]: split["samples"] for name, split in info["splits"].items()}
    for files in data["configs"][0]["data_files"]:
        split = {hub_name: name for name, hub_name in names.items()}[files["split"]]
        matched = {path.relative_to(published).as_posix() for path in published.glob(files["path"])}
        assert matched == {shard["path"] for shard in info["splits"][split]["shards"]}


def test_card_states_labels_settings_losses_and_citation(published: Path) -> None:
    text, info = (published / "README.md").read_text(encoding="utf-8"), read_info(published)
    for number, label in enumerate(info["labels"]):
        counts = " | ".join(f"{split['labels'][label]}" for split in info["splits"].values())
        assert f"| {number} | {label} | {counts} |" in text
    assert f"| audio.n_mels | `{info['config']['audio']['n_mels']}` |" in text
    assert "## Excluded clips" in text
    assert "No group is in two splits" in text
    assert "can be recognized" in text
    assert info["citation"] in text
    assert "arXiv:2602.00701" in text
    assert f"hf://datasets/{REPO}" in text


def test_card_states_group_leakage(published: Path) -> None:
    from avdata.shards.card import dataset_card

    text = dataset_card({**read_info(published), "leaks": 3})
    assert "3 groups are in more than one split" in text
    assert "No group is in two splits" not in text


def test_croissant_is_valid_and_matches_the_index(published: Path) -> None:
    import mlcroissant

    described = mlcroissant.Dataset(jsonld=str(published / "croissant.json"))
    assert not described.metadata.issues.errors
    rows = read_index(published).to_pylist()
    records = list(described.records("samples"))
    assert [one["samples/key"].decode() for one in records] == [row["key"] for row in rows]
    assert [one["samples/label"] for one in records] == [row["label"] for row in rows]
    labels = {one["labels/index"]: one["labels/name"] for one in described.records("labels")}
    assert labels == dict(enumerate(read_info(published)["labels"]))


def test_croissant_has_the_checksum_of_every_file(published: Path) -> None:
    said = json.loads((published / "croissant.json").read_bytes())
    files = {one["contentUrl"]: one["sha256"] for one in said["distribution"]}
    assert {path.relative_to(published).as_posix() for path in published.glob("*/*.tar")} < set(files)
    for name, sha256 in files.items():
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == sha256
