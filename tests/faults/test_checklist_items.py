"""Items of `test_checklist` that no other file tests: 4, 6, 17, 20, 22 and 25."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from support.hub_fixtures import hub, own_set, slept
from support.hub_server import TOKEN, HubServer
from support.trees import digest_tree

import avdata
from avdata.config.schema import build_config
from avdata.errors import AvdataError
from avdata.features.extract import extract_features
from avdata.hub.client import active_token
from avdata.recipe import Clip, load_recipe
from avdata.shards.reader import read_index, read_info
from avdata.streaming.shard_cache import ShardCache
from avdata.subprocesses import python_command, python_environment

__all__ = ["hub", "own_set", "slept"]


@pytest.mark.parametrize("place", ["member", "header", "data", "sample", "end"])
def test_verify_and_loader_name_a_shard_cut_anywhere(place: str, synthetic_set: Path, tmp_path: Path) -> None:
    """webdataset reads four of these five cuts without an error."""
    root = Path(shutil.copytree(synthetic_set, tmp_path / "set"))
    shard = read_info(root)["splits"]["train"]["shards"][0]
    rows = read_index(root).to_pylist()
    row = next(row for row in rows if row["shard"] == shard["path"] and row["offset"])
    size = {
        "member": row["offset"] + 1024, "header": row["offset"] + 100, "data": row["offset"] + 600,
        "sample": row["offset"], "end": shard["bytes"] - 512,
    }[place]  # fmt: skip
    os.truncate(root / shard["path"], size)
    problems = {problem.where: problem.what for problem in avdata.verify(root).problems}
    assert problems[shard["path"]] == f"has {size:,} bytes, not {shard['bytes']:,}"
    with pytest.raises(AvdataError, match=f"{shard['path']}.*{size:,} bytes, expected {shard['bytes']:,}"):
        list(avdata.open(root, "train"))


@pytest.mark.exhaustive
def test_prepare_is_independent_of_the_environment(
    cremad_mock: Path, cremad_set: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys, avdata; os.umask(0o077); avdata.prepare('cremad', source=sys.argv[1],"
        " output=sys.argv[2], config={'video': {'size': 48}, 'shards': {'samples_per_shard': 4}}, workers=2)"
    )
    changed = {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "USER": "nobody"}
    subprocess.run(
        python_command("-c", code, str(cremad_mock), str(tmp_path / "out")),
        env=python_environment(**changed),
        check=True,
    )
    assert digest_tree(tmp_path / "out") == digest_tree(cremad_set)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory_growth(source: Path, decoder: str, clips: int) -> int:
    """Return by how many bytes the memory grows while clips are decoded, after a warm-up of a quarter."""
    config = build_config({"video": {"size": 48, "decoder": decoder}})
    recipe = load_recipe("cremad")
    found = recipe.clips(source, recipe.default_split)
    before = 0
    for number in range(clips + clips // 4):
        if number == clips // 4:
            before = resident_bytes()
        clip: Clip = found[number % len(found)]
        extract_features(clip, config)
    return resident_bytes() - before


def test_decoder_memory_is_flat_over_60_clips(cremad_mock: Path) -> None:
    assert memory_growth(cremad_mock, "pyav", 60) < 8 << 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("decoder", ["pyav", "decord", "ffmpeg"])
def test_decoder_memory_is_flat_over_2000_clips(decoder: str, cremad_mock: Path) -> None:
    assert memory_growth(cremad_mock, decoder, 2000) < 16 << 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("world", range(1, 9))
def test_every_world_and_number_of_workers_returns_each_sample_once(world: int, synthetic_set: Path) -> None:
    keys = sorted(row["key"] for row in read_index(synthetic_set).to_pylist() if row["split"] == "train")
    for workers in range(4):
        lengths, found = set(), Counter[str]()
        for rank in range(world):
            data = avdata.open(synthetic_set, "train", shuffle=True, rank=rank, world_size=world)
            batches = list(data.loader(3, num_workers=workers))
            lengths.add(len(batches))
            for batch in batches:
                weights = np.asarray(batch.weight)
                found.update(key for key, weight in zip(batch.key, weights, strict=True) if weight)
        assert len(lengths) == 1
        assert sorted(found.elements()) == keys


def test_cache_keeps_shards_of_equal_names_apart(
    synthetic_set: Path, cremad_set: Path, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path / "cache")
    copies: dict[str, Path] = {}
    for number, root in enumerate((synthetic_set, cremad_set)):
        shard = read_info(root)["splits"]["train"]["shards"][0]
        same_name = tmp_path / str(number) / "train" / "same-train-00000-of-00001.tar"
        same_name.parent.mkdir(parents=True)
        shutil.copy(root / shard["path"], same_name)
        copies[shard["sha256"]] = same_name
    for sha256, path in copies.items():
        fetched = cache.fetch(path.as_uri(), sha256, path.stat().st_size)
        assert fetched.read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 2


def test_token_of_the_argument_precedes_environment_and_file(
    hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "token"
    stored.write_text("hf_" + "x" * 34)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(stored))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "y" * 34)
    assert active_token(TOKEN) == TOKEN
    assert active_token(None) == "hf_" + "y" * 34
    # The server accepts only this one.
    avdata.publish(own_set, "me/set", token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    avdata.pull("me/set", tmp_path / "by-environment")
    monkeypatch.delenv("HF_TOKEN")
    assert active_token(None) == "hf_" + "x" * 34
    stored.write_text(TOKEN)
    avdata.pull("me/set", tmp_path / "by-file")
    for root in (own_set, tmp_path / "by-environment", tmp_path / "by-file"):
        assert not [
            path for path in root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
        ]
