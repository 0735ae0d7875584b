"""Dataset card: escaping, and the features that `datasets` reads from it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from hypothesis import example, given, settings
from hypothesis import strategies as some
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

import avdata
from avdata.errors import QuarantineReason
from avdata.shards.card import HUB_SPLITS, dataset_card
from avdata.shards.card_features import json_features
from avdata.shards.reader import read_info

HOSTILE = (
    "a | b",
    "`code` ``` ``",
    "``",
    "x\n\n# Heading\n\n---\n- item",
    "<script>alert(1)</script>",
    "--> <!-- ",
    "[link](javascript:alert(1)) ![image](x) <http://x>",
    "*bold* _it_ __b__ ~~gone~~ &lt; \\",
    "- a: {b: [c, &d *e !!python/object/apply:os.system ['true']]} #",
    "1. one",
    "=",
    "---\nlicense: mit\n---\n",
    "{{ repo }} {% raw %} ${HOME} $(reboot)",
    "\u202egnp.exe\u2028next\x85\x00",
)

names = some.text(
    some.sampled_from("|`<>*_[]()#&~$\\\n-+=!1. :'\"{}%")
    | some.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u202a\u202b\u202c\u202d\u202e"),
    min_size=1,
).filter(lambda name: len(" ".join(name.split())) > 0)


def described(value: str) -> dict[str, Any]:
    """Return the content of a dataset.json with the value at each place of free text."""
    return {
        "format": 2, "name": value, "title": value, "recipe": {"name": value, "version": 1},
        "config": {
            "video": {"storage": "jpeg", "codec": value}, "audio": {"flac": True, "sample_rate": 16_000},
        },
        "config_hash": value, "plan": value, "split_by": value, "machine": value, "tools": {value: value},
        "source": {
            "checksums": "manifest", "homepage": value, "commit": value,
            "sources": [{"name": value, "urls": [value, f"https://x/{value}"], "checksum": value}],
        },
        "license": {"id": "other", "name": value, "link": value, "note": value}, "citation": value,
        "ethics": value, "labels": [value, f"not {value}"], "background": value, "leaks": 0,
        "extras": [{"name": "take", "dtype": "int64"}], "quarantine": {QuarantineReason.TRUNCATED: 1},
        "shape": {"mel": [4, 8, 2], "frames": [4, 8, 8, 3]},
        "splits": {"train": {"samples": 1, "groups": 1, "labels": {value: 1}, "shards": []}},
    }  # fmt: skip


def tokens(card: str) -> Iterator[Token]:
    """Yield the Markdown elements of the body, blocks and their inline elements."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for token in parser.parse(DatasetCard(card).text):
        yield token
        yield from token.children or ()


def structure(card: str) -> list[tuple[str, str]]:
    return [(token.type, token.tag) for token in tokens(card)]


def texts(info: dict[str, Any]) -> list[str]:
    """Return the displayed text of each block."""
    return [
        "".join(child.content for child in token.children or ())
        for token in tokens(dataset_card(info))
        if token.type == "inline"
    ]


PLAIN = structure(dataset_card(described("x")))


@settings(max_examples=15)
@given(names)
def test_card_has_the_same_structure_for_any_value(name: str) -> None:
    assert structure(dataset_card(described(name))) == PLAIN


@pytest.mark.parametrize("name", HOSTILE)
def test_card_has_the_same_structure_for_a_hostile_value(name: str) -> None:
    assert structure(dataset_card(described(name))) == PLAIN


@settings(max_examples=15)
@given(names)
@example("a|b `c` <d> _e_ f_g &amp; \\|")
def test_card_displays_values_literally(name: str) -> None:
    displayed = list(zip(texts(described("x")), texts(described(name)), strict=True))
    literal = " ".join(name.split())
    assert len([text for plain, text in displayed if plain == "x"]) == 5
    assert {text for plain, text in displayed if plain == "x"} == {literal}
    assert displayed[0] == ("x, prepared with avdata", f"{literal}, prepared with avdata")


@settings(max_examples=15)
@given(names)
@example("---\nlicense: mit\n---\n")
def test_card_header_keeps_values(name: str) -> None:
    import datasets

    data = DatasetCard(dataset_card(described(name))).data.to_dict()
    assert (data["pretty_name"], data["license"], data["license_name"]) == (name, "other", name)
    features = datasets.Features._from_yaml_list(data["dataset_info"]["features"])
    assert features["cls"].names == [name, f"not {name}"]


Once = Callable[[str, Callable[[Path], object]], Path]

STORAGES: dict[str, dict[str, Any]] = {
    "jpeg": {"video": {"storage": "jpeg"}},
    "gray-jpeg-flac": {"video": {"storage": "jpeg", "color": "gray"}, "audio": {"flac": True}},
    "png-flac": {"video": {"storage": "png"}, "audio": {"flac": True}},
    "gray-png": {"video": {"storage": "png", "color": "gray"}},
    "npy": {"video": {"storage": "npy"}},
    "gray-npy-flac": {"video": {"storage": "npy", "color": "gray"}, "audio": {"flac": True}},
}


def stored_samples(root: Path, split: str) -> dict[str, dict[str, bytes]]:
    """Return the members of each sample, read with the standard library."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted((root / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                samples.setdefault(key, {})[extension] = content.read()
    return samples


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_none(item) for name, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def check_loaded(root: Path, cache: Path, *, streaming: bool) -> None:
    """Compare every sample that `datasets` loads from a folder with the members in its shards."""
    import datasets

    loaded = datasets.load_dataset(str(root), streaming=streaming, cache_dir=str(cache))
    info = read_info(root)
    assert list(loaded) == [HUB_SPLITS[name] for name in info["splits"]]
    for name in info["splits"]:
        split, samples = loaded[HUB_SPLITS[name]], stored_samples(root, name)
        assert split.features["cls"].names == info["labels"]
        assert split.features.keys() == {"__key__", "__url__", *next(iter(samples.values()))}
        if "flac" in split.features:
            assert split.features["flac"].sampling_rate == info["config"]["audio"]["sample_rate"]
            split = split.cast_column("flac", datasets.Audio(decode=False))
        loaded_samples = {sample["__key__"].rpartition("/")[2]: sample for sample in split}
        assert loaded_samples.keys() == samples.keys()
        for key, sample in loaded_samples.items():
            check_sample(sample, samples[key])


def check_sample(sample: dict[str, Any], members: dict[str, bytes]) -> None:
    assert sample["cls"] == int(members["cls"])
    assert without_none(sample["json"]) == without_none(json.loads(members["json"]))
    for extension in members.keys() & {"mel.npy", "frames.npy"}:
        assert np.array_equal(sample[extension], np.load(io.BytesIO(members[extension])))
    for extension in members.keys() & {"frames.jpg", "frames.png"}:
        image = Image.open(io.BytesIO(members[extension]))
        assert np.array_equal(sample[extension], image)
        assert sample[extension].mode == image.mode
    if "flac" in members:
        assert sample["flac"]["bytes"] == members["flac"]


@pytest.mark.parametrize(
    ("storage", "streaming"),
    [("jpeg", False), *((storage, True) for storage in STORAGES)]
    + [
        pytest.param(storage, False, marks=pytest.mark.exhaustive)
        for storage in STORAGES
        if storage != "jpeg"
    ],
)
def test_datasets_loads_label_names_and_every_sample(
    once: Once, cremad_mock: Path, tmp_path: Path, storage: str, streaming: bool
) -> None:
    config = STORAGES[storage]
    config = {**config, "video": {**config["video"], "size": 16}, "shards": {"samples_per_shard": 4}}
    root = once(
        f"cremad-{storage}",
        lambda out: avdata.prepare("cremad", source=cremad_mock, output=out, config=config, workers=0),
    )
    check_loaded(root, tmp_path / "cache", streaming=streaming)


@pytest.mark.parametrize("streaming", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.parametrize(
    ("name", "clips"), [("ave", 8), ("urbansound8k", 20), ("urbansound8k-av", 20), ("synthetic", 8)]
)
def test_datasets_loads_the_json_of_every_recipe(
    once: Once, tmp_path: Path, name: str, clips: int, streaming: bool
) -> None:
    def prepare(out: Path) -> None:
        avdata.mock(name, out.with_name("raw"), clips=clips)
        config = {"video": {"size": 16}}
        avdata.prepare(name, source=out.with_name("raw"), output=out, config=config, workers=0)

    check_loaded(once(f"{name}-16", prepare), tmp_path / "cache", streaming=streaming)


def test_json_features_describe_records_with_different_fields() -> None:
    import datasets

    records = [
        {"a": 1, "b": "x", "c": None, "e": {"f": [1, 2]}, "g": 2**63, "h": {}},
        {"a": 2.5, "b": None, "c": True, "e": {"f": [], "i": [{"j": 1}, {"k": "x"}]}, "g": 1, "h": {}},
        {"d": [], "b": 3, "e": None, "l": [[1], [2.5]], "g": 2},
    ]
    features = datasets.Features._from_yaml_list([{"name": "json", "struct": json_features(records)}])
    loaded = datasets.Dataset.from_list([{"json": record} for record in records], features=features)
    assert [without_none(row["json"]) for row in loaded] == [without_none(record) for record in records]
    assert features["json"]["a"] == datasets.Value("float64")
    assert features["json"]["b"] == datasets.Json()
    assert features["json"]["c"] == datasets.Value("bool")
