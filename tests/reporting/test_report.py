from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.trees import digest_tree

import avdata
from avdata.errors import AvdataError, QuarantineReason
from avdata.reporting.charts import lines, ticks
from avdata.reporting.comparison import compare_datasets
from avdata.reporting.remedies import REMEDIES
from avdata.reporting.statistics import collect_statistics
from avdata.shards.format import index_schema
from avdata.shards.reader import read_index, read_info, read_quarantine


class Text(HTMLParser):
    """The words of a page, and what it would fetch."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.cards: list[dict[str, str | None]] = []
        self._skip = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self._skip = tag in {"style", "script"}
        source = held.get("src") or (held.get("href") if tag == "link" else None)
        if source and not source.startswith("data:"):
            self.fetched.append(source)
        if tag == "article":
            self.cards.append(held)

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_a_page_fetches_nothing_and_stays_below_5_mb(shown_page: Path) -> None:
    page = Text(shown_page)
    assert page.fetched == []
    assert "url(" not in shown_page.read_text(encoding="utf-8")
    assert shown_page.stat().st_size < 5_000_000


def test_making_a_page_changes_nothing_else_of_the_set(shown_set: Path, tmp_path: Path) -> None:
    before = digest_tree(shown_set)
    avdata.report(shown_set, tmp_path / "page.html")
    assert digest_tree(shown_set) == before


def test_without_a_place_the_page_goes_into_the_set_and_the_set_stays_good(
    shown_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(shown_set, tmp_path / "set")
    assert avdata.report(tmp_path / "set") == tmp_path / "set" / "report.html"
    assert avdata.verify(tmp_path / "set").ok


def test_the_page_names_every_clip_left_out_with_its_detail_and_what_to_do(
    shown_set: Path, shown_page: Path
) -> None:
    text = Text(shown_page).text
    rows = read_quarantine(shown_set).to_pylist()
    assert len({row["reason"] for row in rows}) > 5
    for row in rows:
        assert row["key"] in text
        assert re.sub(r"\s+", " ", row["detail"]) in text
        assert REMEDIES[row["reason"]] in text


def test_every_reason_has_something_to_do() -> None:
    assert set(REMEDIES) == set(QuarantineReason)


def test_the_gallery_shows_every_flagged_sample_and_each_label_of_each_split(
    shown_set: Path, shown_page: Path
) -> None:
    cards = Text(shown_page).cards
    index = read_index(shown_set).to_pylist()
    assert {row["key"] for row in index if row["flags"]} <= {card["data-text"] for card in cards}
    pairs = {(row["split"], row["label_name"]) for row in index}
    assert {(card["data-split"], card["data-label"]) for card in cards} == pairs


def test_the_sound_of_a_card_is_the_stored_flac(shown_set: Path, shown_page: Path) -> None:
    import base64

    from avdata.shards.reader import read_members
    from avdata.shards.sample import read_sample_bytes

    row = next(row for row in read_index(shown_set).to_pylist() if row["flags"])
    stored = bytes(read_members(read_sample_bytes(shown_set, row))["flac"])
    assert base64.b64encode(stored).decode() in shown_page.read_text(encoding="utf-8")


def test_words_of_a_set_are_never_markup(shown_set: Path, tmp_path: Path) -> None:
    shutil.copytree(shown_set, tmp_path / "set")
    info = read_info(tmp_path / "set")
    info["title"] = "<script>alert(1)</script>"
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(info))
    page = avdata.report(tmp_path / "set").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_damage_is_told_and_the_rest_is_shown(shown_set: Path, tmp_path: Path) -> None:
    shutil.copytree(shown_set, tmp_path / "set")
    row = read_index(shown_set).to_pylist()[0]
    with (tmp_path / "set" / row["shard"]).open("r+b") as stream:
        stream.seek(row["offset"] + 700)
        stream.write(b"damage")
    page = Text(avdata.report(tmp_path / "set"))
    assert f"{row['key']}: its bytes in {row['shard']} are not those" in page.text
    assert row["key"] not in {card["data-text"] for card in page.cards}
    assert page.cards


def test_a_page_is_made_of_a_set_that_keeps_no_sound_and_measures_no_offset(
    synthetic_set: Path, tmp_path: Path
) -> None:
    page = Text(avdata.report(synthetic_set, tmp_path / "silent.html"))
    assert "No offset was measured" in page.text
    assert "This set keeps no sound" in page.text
    assert page.cards


def test_the_histogram_counts_every_sample_once_and_finds_the_flagged_tail(tmp_path: Path) -> None:
    big_index(tmp_path, 5_000)
    held = collect_statistics(tmp_path)
    offset = held.histograms["offset"]
    assert (held.samples, offset.total) == (5_000, 5_000)
    assert int(offset.counts["flagged"].sum()) == 50
    centers = (offset.edges[:-1] + offset.edges[1:]) / 2
    assert centers[np.flatnonzero(offset.counts["flagged"])].min() > 0.3
    assert held.offset_median == pytest.approx(0.025, abs=1e-3)
    assert all(held.histograms[name].total == 5_000 for name in ("sound", "picture", "pad"))


def test_the_extremes_are_the_extremes(tmp_path: Path) -> None:
    table = big_index(tmp_path, 5_000)
    picks = collect_statistics(tmp_path).picks
    latest = max(table.to_pylist(), key=lambda row: row["av_offset"])["key"]
    longest = max(table.to_pylist(), key=lambda row: row["duration_audio"])["key"]
    why = {pick.row["key"]: pick.why for pick in picks}
    assert "latest sound" in why[latest]
    assert "longest sound" in why[longest]


def test_the_same_seed_picks_the_same_samples_and_another_seed_others(tmp_path: Path) -> None:
    big_index(tmp_path, 5_000)
    keys = [[pick.row["key"] for pick in collect_statistics(tmp_path, seed=seed).picks] for seed in (1, 1, 2)]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    code = (
        "import pathlib, re, sys; from avdata.reporting.statistics import collect_statistics;"
        "held = collect_statistics(pathlib.Path(sys.argv[1]));"
        # Not ru_maxrss: it begins with the parent's peak.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1];"
        "print(held.samples, int(peak) // 1024)"
    )
    # Arrow's threads, as many as processors, keep memory of their own.
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    peaks = {}
    for count in (100_000, 500_000):
        big_index(tmp_path, count)
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], env=env, capture_output=True, text=True, check=True
        )
        samples, peak = map(int, done.stdout.split())
        peaks[samples] = peak
    # 400,000 rows are 100 MB as a table; what is left is the allocator's.
    assert peaks[500_000] - peaks[100_000] < 40, peaks


def test_a_set_compared_with_itself_differs_in_nothing(shown_set: Path) -> None:
    info = read_info(shown_set)
    held = compare_datasets(shown_set, shown_set, info, info)
    assert (held.settings, held.about, held.counts, held.note) == ([], [], [], "")
    assert held.both == held.same_bytes == sum(split["samples"] for split in info["splits"].values())
    assert (held.only_a, held.only_b, held.moved, held.relabelled) == (0, 0, 0, 0)
    assert all((mean, largest) == (0, 0) for _, mean, largest in held.features)


def test_what_differs_between_two_preparations_is_told(shown_set: Path, tmp_path: Path) -> None:
    source = avdata.mock("cremad", tmp_path / "raw", clips=16)
    settings = {"audio": {"amin": 1e-6}, "video": {"size": 64}}
    avdata.prepare("cremad", source=source, output=tmp_path / "b", config=settings, workers=0)
    held = compare_datasets(shown_set, tmp_path / "b", read_info(shown_set), read_info(tmp_path / "b"))
    assert ("audio.amin", 1e-10, 1e-6) in held.settings
    assert held.only_a > 0
    assert (held.both, held.same_bytes) == (16, 0)
    gaps = {name: largest for name, _, largest in held.features}
    assert gaps["mel"] == pytest.approx(40, abs=1)  # 10·log10 of the two floors
    assert gaps["frames"] == 0
    page = Text(avdata.report(shown_set, tmp_path / "page.html", against=tmp_path / "b"))
    assert "audio.amin" in page.text
    assert "16 samples are in both" in page.text


def test_ticks_are_round_and_inside_the_axis() -> None:
    for low, high in ((0, 1), (-0.37, 12.2), (25.0567, 25.0568), (-1e-4, 3e5)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6
        assert all(-1e-9 <= tick.at <= 1 + 1e-9 for tick in found)


def test_the_command_says_where_the_page_is(shown_set: Path, tmp_path: Path) -> None:
    words = ["report", str(shown_set), "--output", str(tmp_path / "page.html")]
    done = subprocess.run(
        [sys.executable, "-m", "avdata.cli", *words], capture_output=True, text=True, check=True
    )
    assert "page.html is written" in done.stdout
    assert (tmp_path / "page.html").is_file()


def big_index(root: Path, count: int) -> pa.Table:
    """An index of many samples whose shards are not there; every hundredth is late and flagged."""
    dice = np.random.default_rng(0)
    number = np.arange(count)
    late = number % 100 == 7
    key = pa.array(np.char.add("clip", number.astype(str)))
    split = pa.array(np.array(["train", "val", "test"])[number % 3])
    flags = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(late)]).astype(np.int32)),
        pa.array(["low_correlation"] * int(late.sum()), pa.string()),
    )
    columns = {
        "key": key, "split": split, "shard": split, "offset": number * 10_240,
        "nbytes": np.full(count, 10_240),
        "label": (number % 28).astype(np.int32), "label_name": pa.array((number % 28).astype(str)),
        "group": key,
        "window_start": np.zeros(count), "window_end": np.full(count, 2.56),
        "av_offset": np.where(late, dice.uniform(0.4, 0.5, count), dice.normal(0.025, 0.001, count)),
        "av_peak": dice.uniform(0.4, 1, count), "duration_audio": dice.uniform(1, 5, count),
        "duration_video": dice.uniform(1, 5, count), "pad_fraction": dice.uniform(0, 1, count),
        "flags": flags, "sha256": pa.array(np.char.add("0" * 56, np.char.zfill(number.astype(str), 8))),
    }  # fmt: skip
    table = pa.table({name: pa.array(held) for name, held in columns.items()}).cast(index_schema())
    pq.write_table(table, root / "index.parquet", compression="zstd")
    return table


def test_stills_are_not_said_to_come_in_one_file_with_their_sound(
    urbansound_bad: Path, tmp_path: Path
) -> None:
    settings = {"video": {"size": 32}, "select": {"limit": 2}}
    avdata.prepare(
        "urbansound8k-av", source=urbansound_bad, output=tmp_path / "out", config=settings, workers=0
    )
    said = Text(avdata.report(tmp_path / "out")).text
    assert "No offset was measured" in said
    assert "one file" not in said


@pytest.mark.parametrize("name", ["index.parquet", "quarantine.parquet"])
def test_a_table_that_is_not_there_is_said_to_be_missing(shown_set: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(shown_set, tmp_path / "set")
    (tmp_path / "set" / name).unlink()
    for look in (avdata.report, avdata.verify):
        with pytest.raises(AvdataError, match=rf"{name} cannot be read \(there is no such file\)"):
            look(tmp_path / "set")


def test_a_single_point_is_drawn() -> None:
    chart = lines("accuracy", "step", {"val": [(20, 0.5)]}, low=0.0, high=1.0)
    assert chart is not None
    assert re.fullmatch(r"M[\d.]+ 150\.0h0", chart.shapes["val"])
