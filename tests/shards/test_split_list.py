"""Published lists against a prepared dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from avdata.cli import app
from avdata.errors import UsageError
from avdata.shards.format import parquet_bytes, quarantine_schema
from avdata.shards.reader import read_index
from avdata.shards.split_list import match


@pytest.fixture
def dataset(cremad_set: Path, tmp_path: Path) -> Path:
    """Return a copy of a dataset of which one clip was moved to quarantine."""
    copy = tmp_path / "set"
    copy.mkdir()
    shutil.copy(cremad_set / "dataset.json", copy)
    index = read_index(cremad_set)
    pq.write_table(index.slice(1), copy / "index.parquet")
    row = {"key": index["key"][0].as_py(), "reason": "silent_audio", "detail": "peak -80 dBFS", "kept": ""}
    (copy / "quarantine.parquet").write_bytes(parquet_bytes([row], quarantine_schema()))
    return copy


def keys(root: Path) -> list[str]:
    return read_index(root, ["key"])["key"].to_pylist()


@pytest.mark.parametrize(
    "line",
    [
        "{key},ANG", "ANG&{key}&good&0&10", "{key}.mp4 10 3", "train/ANG/{key}.flv", "{key}\tANG\t0",
        "{key}",
    ],
)  # fmt: skip
def test_match_finds_the_names_in_published_forms(cremad_set: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(
        "".join(line.format(key=key) + "\r\n" for key in keys(cremad_set)[:5]), encoding="utf-8-sig"
    )
    result = match(cremad_set, path)
    assert (result.listed, sum(result.found.values()), result.missing) == (5, 5, ())
    assert sum(result.unlisted.values()) == 9


def test_match_joins_video_and_second_of_vggsound(
    cremad_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(cremad_set)
    renamed = index.set_column(0, "key", [[f"yt-{number}_000030" for number in range(len(index))]])
    monkeypatch.setattr("avdata.shards.split_list.read_index", lambda root, columns: renamed.select(columns))
    path = tmp_path / "vggsound.csv"
    path.write_text('yt-0,30,"playing guitar, acoustic",train\nyt-99,30,dog bark,test\n')
    result = match(cremad_set, path)
    assert sum(result.found.values()) == 1
    assert [clip.key for clip in result.missing] == ["yt-99_000030"]


def test_match_states_why_clips_are_missing(dataset: Path, cremad_set: Path, tmp_path: Path) -> None:
    gone, here, *_ = keys(cremad_set)
    path = tmp_path / "train.csv"
    path.write_text(f"{gone},ANG\n{here},ANG\n{here},ANG\n1091_XXX_ANG_XX,ANG\n")
    result = match(dataset, path)
    assert (result.listed, result.duplicates) == (3, 1)
    assert result.missing_by_reason == {"not_in_dataset": 1, "silent_audio": 1}
    assert result.missing[0].detail == "peak -80 dBFS"


def test_match_refuses_a_list_of_another_dataset(cremad_set: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("abc,1\n")
    with pytest.raises(UsageError, match="names no clip of"):
        match(cremad_set, path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no text"):
        match(cremad_set, path)
    with pytest.raises(UsageError, match="cannot be read"):
        match(cremad_set, tmp_path / "missing.csv")


def test_match_command_prints_counts_and_reasons(dataset: Path, cremad_set: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("".join(f"{key},ANG\n" for key in keys(cremad_set)))
    words = ["match", str(dataset), "--split-list", str(path)]
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 0, text.output
    assert "13 of 14 listed clips are in" in text.stdout
    assert "silent_audio: peak -80 dBFS" in text.stdout
    values = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert values["missing_by_reason"] == {"silent_audio": 1}
    assert sum(values["found"].values()) == 13
