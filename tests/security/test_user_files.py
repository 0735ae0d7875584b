"""Files of the user are neither replaced nor removed, and no write leaves its folder through a link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.hub_server import Fault, HubServer
from support.tiny_dataset import make_manifest, make_recipe
from support.trees import digest_tree

import avdata
from avdata.errors import AvdataError
from avdata.manifest import Source
from avdata.pipeline.journal import Journal
from avdata.shards.reader import read_info
from avdata.sources.download import download
from avdata.sources.partial_file import PartialFile, RemoteVersion
from avdata.storage.atomic import DiskError, atomic_write
from avdata.storage.paths import check_no_symlinks
from avdata.streaming.shard_cache import ShardCache

REPO = "me/cremad-av"
SETTINGS = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}


@pytest.fixture
def published(hub: HubServer, own_set: Path) -> HubServer:
    avdata.publish(own_set, REPO)
    return hub


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder of the user's elsewhere, to which links of the attacker point."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    return folder


@pytest.mark.parametrize(
    "name", ["train/my-own-000.tar", "README.md", "train/cremad-train-00000-of-00002.tar"]
)
def test_pull_refuses_a_folder_of_files_without_a_dataset(
    name: str, published: HubServer, tmp_path: Path
) -> None:
    own = tmp_path / "pulled" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(AvdataError, match="which is not part of a prepared dataset"):
        avdata.pull(REPO, tmp_path / "pulled")
    assert digest_tree(tmp_path / "pulled").keys() == {name}
    assert own.read_bytes() == b"mine"


def test_pull_keeps_files_that_no_dataset_json_names(
    published: HubServer, own_set: Path, tmp_path: Path
) -> None:
    root = avdata.pull(REPO, tmp_path / "pulled")
    (root / "train/my-own-000.tar").write_bytes(b"mine")
    (root / "notes.txt").write_bytes(b"mine")
    (root / "quarantine.parquet").write_bytes(b"an older version")
    avdata.pull(REPO, root)
    assert (root / "train/my-own-000.tar").read_bytes() == (root / "notes.txt").read_bytes() == b"mine"
    assert (root / "quarantine.parquet").read_bytes() == (own_set / "quarantine.parquet").read_bytes()


def test_pull_refuses_to_replace_a_file_that_no_dataset_json_names(
    published: HubServer, own_set: Path, tmp_path: Path
) -> None:
    root = avdata.pull(REPO, tmp_path / "pulled")
    info = read_info(root)
    shard = info["splits"]["train"]["shards"].pop()["path"]
    (root / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    (root / shard).write_bytes(b"mine")
    with pytest.raises(AvdataError, match=r"which no dataset\.json there names"):
        avdata.pull(REPO, root)
    assert (root / shard).read_bytes() == b"mine"


def test_pull_resumes_after_an_interruption_and_removes_only_its_own_files(
    published: HubServer, own_set: Path, cremad_mock: Path, tmp_path: Path
) -> None:
    root = avdata.pull(REPO, tmp_path / "pulled")
    other = tmp_path / "other"
    settings = {**SETTINGS, "shards": {"samples_per_shard": 3}}
    avdata.prepare("cremad", source=cremad_mock, output=other, config=settings, workers=0)
    avdata.publish(other, REPO, allow_mock=True)
    (root / "train/my-own-000.tar").write_bytes(b"mine")
    last = sorted((other / "train").iterdir())[-1].name
    published.faults.append(Fault(rf"GET .*/{last}", status=403, times=99))
    with pytest.raises(AvdataError):
        avdata.pull(REPO, root)
    assert not (root / "dataset.json").exists()
    published.faults.clear()
    avdata.pull(REPO, root)
    assert (root / "train/my-own-000.tar").read_bytes() == b"mine"
    (root / "train/my-own-000.tar").unlink()
    assert digest_tree(root) == digest_tree(other)


@pytest.mark.parametrize("link", ["train", ".avdata-pull", "README.md"])
def test_pull_follows_no_link(link: str, published: HubServer, target: Path, tmp_path: Path) -> None:
    root = avdata.pull(REPO, tmp_path / "pulled")
    for name in (*sorted(path.name for path in (root / "train").iterdir()), "README.md"):
        (target / name).write_bytes(b"precious")
    if (root / link).is_dir():
        (root / link).rename(tmp_path / "moved")
    else:
        (root / link).unlink(missing_ok=True)
    (root / link).symlink_to(target / link if link == "README.md" else target)
    before = digest_tree(target)
    with pytest.raises(AvdataError, match="is a symbolic link, which is not followed"):
        avdata.pull(REPO, root)
    assert digest_tree(target) == before


@pytest.mark.parametrize("link", ["train", ".avdata", ".avdata/parts", ".avdata/lock", ".avdata/done"])
def test_prepare_follows_no_link(link: str, cremad_mock: Path, target: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (output / link).parent.mkdir(parents=True)
    (output / link).symlink_to(target / "precious" if link.endswith("lock") else target)
    before = digest_tree(target)
    with pytest.raises(AvdataError, match="is a symbolic link, which is not followed"):
        avdata.prepare("cremad", source=cremad_mock, output=output, config=SETTINGS, workers=0)
    assert digest_tree(target) == before


def test_journal_entry_moves_no_file_from_outside(cremad_mock: Path, target: Path, tmp_path: Path) -> None:
    """An entry of a manipulated journal names its partial file; only the name counts, not its folder."""
    journal = Journal(tmp_path / "out")
    entry = {"fingerprint": "f", "bytes": 8, "part": "../../../elsewhere/precious"}
    atomic_write(journal.entry_path("train/x.tar"), json.dumps(entry).encode())
    assert journal.load_entry("train/x.tar", "f") is None
    assert (target / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["a.wav.part", "a.wav.part.json"])
def test_download_follows_no_link(name: str, target: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(target / "precious")
    partial = PartialFile(tmp_path / "a.wav", "sha256", pinned=False)

    def write() -> None:
        partial.set_version(RemoteVersion("https://example.org/a.wav"))
        partial.write(b"evil")

    with pytest.raises(DiskError, match="is a symbolic link, which is not followed"):
        write()
    partial.close()
    assert (target / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("link", ["wav", ".avdata", ".avdata/attempts.jsonl", ".avdata/failed.json"])
def test_download_writes_through_no_link(link: str, target: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (output / link).parent.mkdir(parents=True)
    (output / link).symlink_to(target / "precious" if "/" in link else target)
    before = digest_tree(target)
    manifest = make_manifest([Source(name="media", urls=("http://127.0.0.1:9/a",), into="wav/a.wav")])
    with pytest.raises(AvdataError, match="is a symbolic link, which is not followed"):
        download(make_recipe(), manifest=manifest, output=output, give_up_after=0.1)
    assert digest_tree(target) == before


def test_export_follows_no_link(cremad_set: Path, target: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / f"audio_train.npy.{os.getpid()}.part").symlink_to(target / "precious")
    with pytest.raises(DiskError, match="cannot be written"):
        avdata.export(cremad_set, output)
    assert (target / "precious").read_bytes() == b"precious"


def test_export_replaces_a_link_instead_of_its_target(cremad_set: Path, target: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "labels_train.npy").symlink_to(target / "precious")
    avdata.export(cremad_set, output)
    assert not (output / "labels_train.npy").is_symlink()
    assert (target / "precious").read_bytes() == b"precious"


def test_cache_follows_no_link(cremad_set: Path, target: Path, tmp_path: Path) -> None:
    shard = read_info(cremad_set)["splits"]["train"]["shards"][0]
    cache = ShardCache(tmp_path / "cache")
    (tmp_path / "cache/shards").mkdir(parents=True)
    (tmp_path / "cache/shards" / f"{shard['sha256']}.part").symlink_to(target / "precious")
    with pytest.raises(AvdataError, match="Cannot store"):
        cache.fetch(f"file://{cremad_set / shard['path']}", shard["sha256"], shard["bytes"])
    assert (target / "precious").read_bytes() == b"precious"


def test_atomic_write_follows_no_link(target: Path, tmp_path: Path) -> None:
    (tmp_path / f"x.{os.getpid()}.part").symlink_to(target / "precious")
    with pytest.raises(DiskError, match="is a symbolic link"):
        atomic_write(tmp_path / "x", b"evil")
    assert (target / "precious").read_bytes() == b"precious"


def test_check_no_symlinks_allows_a_root_that_is_a_link(target: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(target)
    check_no_symlinks(tmp_path / "data", ["precious", "new/file"])
    (target / "inner").symlink_to(target)
    with pytest.raises(AvdataError, match="inner is a symbolic link"):
        check_no_symlinks(tmp_path / "data", ["inner/new/file"])
