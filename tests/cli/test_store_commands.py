"""Commands that read a prepared dataset behind a URL give what they give for a folder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from support.trees import digest_tree
from typer.testing import CliRunner

import avdata
from avdata.cli import app
from avdata.errors import AvdataError
from avdata.shards.dataset_files import READ_AHEAD_BYTES, open_dataset_files
from avdata.storage.remote import open_filesystem


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def url(cremad_set: Path) -> Iterator[str]:
    """The URL of a dataset in the memory of this process."""
    files = fsspec.filesystem("memory")
    files.put(f"{cremad_set}/", "/talk/set/", recursive=True)
    yield "memory://talk/set"
    files.rm("/talk", recursive=True)


def test_verify_reads_a_dataset_in_object_storage_where_it_lies(bucket: str, cremad_set: Path) -> None:
    files, base = open_filesystem(f"{bucket}/set")
    files.put(f"{cremad_set}/", f"{base}/", recursive=True)
    found, expected = avdata.verify(f"{bucket}/set"), avdata.verify(cremad_set)
    assert (found.root, found.problems) == (f"{bucket}/set", ())
    assert (found.samples, found.bytes) == (expected.samples, expected.bytes)
    shard = next(iter(open_dataset_files(f"{bucket}/set").shard_facts()))
    data = files.cat_file(f"{base}/{shard}")
    files.pipe_file(f"{base}/{shard}", data[:-20_480])
    assert f"{shard}: has {len(data) - 20_480:,} bytes" in run("verify", f"{bucket}/set", code=1)
    files.rm_file(f"{base}/{shard}")
    files.pipe_file(f"{base}/train/other.tar", b"x")
    text = run("verify", f"{bucket}/set", code=1)
    assert f"{shard}: is missing" in text
    assert "train/other.tar: is a shard that dataset.json does not list" in text


def test_verify_by_workers_finds_the_same_problems_in_the_same_order(
    cremad_set: Path, tmp_path: Path
) -> None:
    for name in digest_tree(cremad_set):
        data = bytearray((cremad_set / name).read_bytes())
        if name.endswith(".tar"):
            data[5_000] ^= 1
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    problems = avdata.verify(tmp_path).problems
    assert len(problems) >= 4
    assert avdata.verify(tmp_path, workers=2).problems == problems


def test_inspect_reads_only_the_bytes_of_the_sample(
    url: str, cremad_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, client = [], type(fsspec.filesystem("memory"))
    cat = client.cat_file

    def counted(self: object, path: str, *args: object, **options: object) -> bytes:
        data = cat(self, path, *args, **options)
        read.append((path.rpartition("/")[2], len(data)))
        return data

    monkeypatch.setattr(client, "cat_file", counted)
    row = pq.read_table(cremad_set / "index.parquet").to_pylist()[3]
    shown = json.loads(run("inspect", url, row["key"], "--json"))
    assert shown == json.loads(run("inspect", cremad_set, row["key"], "--json"))
    assert dict(read)[Path(row["shard"]).name] == row["nbytes"]
    assert {name for name, _ in read} == {"dataset.json", "index.parquet", Path(row["shard"]).name}
    listed = run("inspect", url, "--limit", 3, "--json")
    assert listed == run("inspect", cremad_set, "--limit", 3, "--json")
    assert run("stats", url) == run("stats", cremad_set).replace(str(cremad_set), url)
    read.clear()
    run("inspect", url, row["key"], "--json")
    assert "index.parquet" not in dict(read)  # the copy has the checksum in dataset.json


def test_report_of_a_url_is_written_to_the_current_folder(
    url: str, cremad_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", url, "--compare", cremad_set, "--quiet").startswith("Wrote report.html ")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "memory://talk/set" in page
    assert not fsspec.filesystem("memory").exists("/talk/set/report.html")


def test_export_of_a_url_is_that_of_its_folder(url: str, cremad_set: Path, tmp_path: Path) -> None:
    run("export", url, "folders", "--output", tmp_path / "there", "--quiet")
    run("export", cremad_set, "folders", "--output", tmp_path / "here", "--quiet")
    here, there = digest_tree(tmp_path / "here"), digest_tree(tmp_path / "there")
    assert there == here


def test_match_reads_a_dataset_behind_a_url(url: str, cremad_set: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("1001_DFA_ANG_XX,ANG\n" + avdata.open(cremad_set).keys[0] + ",x\n")
    assert avdata.match(url, tmp_path / "list.csv") == avdata.match(cremad_set, tmp_path / "list.csv")


def test_a_url_without_a_dataset_is_named(url: str) -> None:
    with pytest.raises(AvdataError, match=r"memory://talk/nothing is not a prepared dataset") as caught:
        avdata.verify("memory://talk/nothing")
    assert caught.value.hint == "Pass the URL that contains dataset.json."


def test_samples_in_the_order_of_a_shard_are_read_ahead(
    url: str, cremad_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    monkeypatch.setattr(
        "avdata.storage.remote_files.read_range",
        lambda url, offset, nbytes: requests.append(nbytes) or shard.read_bytes()[offset : offset + nbytes],
    )
    files = open_dataset_files(url)
    name = next(iter(files.shard_facts()))
    shard = cremad_set / name
    size = shard.stat().st_size
    parts = [files.read(name, start, 4096) for start in range(0, size, 4096)]
    assert b"".join(parts) == shard.read_bytes()
    assert requests == [4096, min(READ_AHEAD_BYTES, size - 4096)]


def test_files_are_pickled_without_the_list_of_shards(url: str, cremad_set: Path) -> None:
    for dataset in (url, cremad_set):
        files = open_dataset_files(dataset, "index.parquet")
        shard = next(iter(files.shard_facts()))
        assert len(pickle.dumps(files)) < 1_000
        assert pickle.loads(pickle.dumps(files)).read(shard) == files.read(shard)


def test_local_datasets_need_no_client(cremad_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avdata.storage.remote.open_client", None)
    assert avdata.verify(cremad_set).ok
