"""`avdata inspect` and `avdata stats`."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from avdata.cli.main import app
from avdata.cli.sample_tables import _step_labels
from avdata.errors import UsageError


def shown(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False, env={"COLUMNS": "100"})
    assert done.exit_code == 0
    return done.output


def test_inspect_shows_units(cremad_set: Path) -> None:
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in shown("inspect", cremad_set).splitlines())
    assert re.fullmatch(r"[\d.]+ to [\d.]+ s of the clip, [\d.]+% padding", rows["window"])
    assert re.fullmatch(r"[\d.]+ ms, correlation [\d.]+", rows["audio offset"])
    assert re.fullmatch(r"\[4, 128, 128\] \[T, bands, columns\], float16, .* dB", rows["spectrogram"])
    assert rows["step times"].endswith(" s")


def test_step_labels_are_shown_in_runs() -> None:
    text = _step_labels([2, 2, 0, 0, 0, 2], ("bell", "dog", "background"))
    assert text == "steps 0 to 1: 2 background; steps 2 to 4: 0 bell; step 5: 2 background"


def test_inspect_limit_lists_the_first_samples(cremad_set: Path) -> None:
    listed = json.loads(shown("inspect", cremad_set, "--limit", "3", "--json"))
    index = pq.read_table(cremad_set / "index.parquet").to_pylist()
    assert listed == index[:3]
    assert f"3 of {len(index)} samples" in shown("inspect", cremad_set, "--limit", "3")


def test_inspect_where_lists_the_samples_of_a_condition(cremad_set: Path) -> None:
    listed = json.loads(shown("inspect", cremad_set, "--where", "label_name == 'ANG'", "--json"))
    index = pq.read_table(cremad_set / "index.parquet").to_pylist()
    assert [row["key"] for row in listed] == [row["key"] for row in index if row["label_name"] == "ANG"] != []
    with pytest.raises(UsageError, match="show one sample"):
        shown("inspect", cremad_set, listed[0]["key"], "--limit", "1")


def test_stats_counts_what_the_shards_hold(cremad_set: Path) -> None:
    stats = json.loads(shown("stats", cremad_set, "--json"))
    for split, counted in stats["splits"].items():
        shards = sorted((cremad_set / split).glob("*.tar"))
        labels: Counter[str] = Counter()
        seconds = 0.0
        for shard in shards:
            with tarfile.open(shard) as tar:
                for member in (name for name in tar.getnames() if name.endswith(".json")):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    facts = json.load(stream)
                    labels[facts["label_name"]] += 1
                    seconds += facts["window_end"] - facts["window_start"]
        assert counted["labels"] == dict(sorted(labels.items()))
        assert (counted["samples"], counted["shards"]) == (labels.total(), len(shards))
        assert counted["bytes"] == sum(shard.stat().st_size for shard in shards)
        assert counted["hours"] == pytest.approx(seconds / 3600, abs=1e-5)
    offsets = [row["av_offset"] for row in pq.read_table(cremad_set / "index.parquet").to_pylist()]
    assert stats["av_offset_s"]["count"] == len(offsets)
    assert stats["av_offset_s"]["max"] == max(offsets)


def test_stats_prints_tables_of_splits_labels_and_measurements(cremad_set: Path) -> None:
    text = shown("stats", cremad_set)
    headers = [line.split()[0] for line in text.splitlines() if {"samples", "train"} & set(line.split()[1:])]
    assert headers == ["split", "label", "measurement"]
    assert "quarantine: none" in text


def test_stats_has_no_offsets_without_separate_audio(synthetic_set: Path) -> None:
    assert json.loads(shown("stats", synthetic_set, "--json"))["av_offset_s"] is None
