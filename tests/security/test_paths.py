"""File names in dataset.json and the index are outside data: each becomes no path but `SPLIT/NAME.tar`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.hub_server import HubServer
from support.trees import digest_tree

import avdata
from avdata.errors import AvdataError
from avdata.shards.format import index_schema, parquet_bytes
from avdata.shards.reader import read_info
from avdata.shards.sample import load_sample

REPO = "me/cremad-av"

UNSAFE = (
    ".git/config", "soundfile.py", "../outside.tar", "/etc/passwd", "train/../../outside.tar",
    "train/a/b.tar", "train/a\0.tar", "train/a\n.tar", "extra/a.tar", "train\\a.tar", "train/ä.tar",
    "train/.tar/", "README.md", None, 7, ["train/a.tar"],
)  # fmt: skip

READERS: dict[str, Callable[[Path], object]] = {
    "open": lambda root: avdata.open(root, "train"),
    "verify": avdata.verify,
    "report": lambda root: avdata.report(root, root / "report.html"),
    "export": lambda root: avdata.export(root, root.parent / "exported"),
    "publish": lambda root: avdata.publish(root, REPO),
    "inspect": load_sample,
}


def add_shard(info: dict[str, Any], path: object, data: bytes = b"evil") -> bytes:
    """Return a dataset.json that lists one more shard of the split train."""
    sha256 = hashlib.sha256(data).hexdigest()
    info["splits"]["train"]["shards"].append(
        {"path": path, "samples": 0, "bytes": len(data), "sha256": sha256}
    )
    return json.dumps(info).encode()


def publish_changed(hub: HubServer, files: dict[str, bytes]) -> None:
    """Commit files of an attacker to the published dataset."""
    repo = hub.repos[REPO]
    commit = repo.at("main")
    assert commit is not None
    repo.commit("main", {**commit.files, **{name: ("regular", data) for name, data in files.items()}})


@pytest.mark.parametrize("path", UNSAFE, ids=repr)
def test_dataset_json_with_an_unsafe_path_is_refused(path: object, own_set: Path) -> None:
    (own_set / "dataset.json").write_bytes(add_shard(read_info(own_set), path))
    with pytest.raises(AvdataError, match=r"dataset\.json"):
        read_info(own_set)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_dataset_json_with_an_unsafe_path(
    name: str, own_set: Path, hub: HubServer
) -> None:
    (own_set / "dataset.json").write_bytes(add_shard(read_info(own_set), "train/../../outside.tar"))
    before = digest_tree(own_set)
    with pytest.raises(AvdataError, match="Unsafe shard path in"):
        READERS[name](own_set)
    assert digest_tree(own_set) == before
    assert not hub.repos


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_an_index_with_an_unsafe_path(name: str, own_set: Path, hub: HubServer) -> None:
    rows = pq.read_table(own_set / "index.parquet").to_pylist()
    outside = shutil.move(own_set / rows[0]["shard"], own_set.parent / "outside.tar")
    for row in rows:
        row["shard"] = f"../{outside.name}"
    data = parquet_bytes(rows, index_schema())
    (own_set / "index.parquet").write_bytes(data)
    info = read_info(own_set)
    info["index"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (own_set / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    read = (lambda root: avdata.open(root, "train")[0]) if name == "open" else READERS[name]
    with pytest.raises(AvdataError, match=r"Unsafe shard path in .*index\.parquet"):
        read(own_set)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(name="../../x"), "Unsafe dataset name"),
        (lambda info: info["splits"].update({"../x": info["splits"].pop("train")}), "Invalid splits"),
        (
            lambda info: info["splits"]["train"]["shards"][0].update(sha256="../../x"),
            r"Invalid splits\.train\.shards\.0\.sha256",
        ),
        (
            lambda info: info["splits"]["train"]["shards"][0].update(bytes=-1),
            r"Invalid splits\.train\.shards\.0\.bytes",
        ),
        (lambda info: info["splits"].update(train=[]), r"Invalid splits\.train"),
        (lambda info: info.update(splits=[]), "Invalid splits"),
        (
            lambda info: info["splits"]["train"]["shards"][0].update(path="val/x.tar"),
            "listed in split train",
        ),
    ],
)
def test_every_name_that_becomes_a_path_is_checked(
    change: Callable[[dict[str, Any]], object], message: str, own_set: Path
) -> None:
    info = read_info(own_set)
    change(info)
    (own_set / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(AvdataError, match=message):
        read_info(own_set)


@pytest.mark.parametrize("path", ["soundfile.py", ".git/config", "train/../../outside.tar"])
def test_pull_writes_no_file_that_a_published_dataset_json_smuggles_in(
    path: str, hub: HubServer, own_set: Path, tmp_path: Path
) -> None:
    avdata.publish(own_set, REPO)
    publish_changed(hub, {path: b"evil", "dataset.json": add_shard(read_info(own_set), path)})
    with pytest.raises(AvdataError, match=r"Unsafe shard path in dataset\.json of me/cremad-av"):
        avdata.pull(REPO, tmp_path / "pulled")
    assert {file.name for file in (tmp_path / "pulled").iterdir()} == {".avdata-pull"}
    assert not (tmp_path / "outside.tar").exists()


def test_open_refuses_a_remote_dataset_with_an_unsafe_path(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO)
    publish_changed(hub, {"dataset.json": add_shard(read_info(own_set), "../evil.tar")})
    with pytest.raises(
        AvdataError, match=r"Unsafe shard path in hf://datasets/me/cremad-av@\w+/dataset\.json"
    ):
        avdata.open(f"hf://datasets/{REPO}", "train")
