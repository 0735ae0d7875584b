from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from support.trees import digest_tree

import avdata
from avdata.config.overrides import diff_settings, parse_setting
from avdata.config.schema import Config, build_config
from avdata.errors import AvdataError, UsageError
from avdata.recipe import load_recipe
from avdata.reporting.key_list import list_keys
from avdata.reporting.overview import Setting, _argument, _warnings, collect_overview
from avdata.reporting.preview_audio import _verified_path
from avdata.reporting.remedies import REMEDIES
from avdata.reporting.statistics import DatasetStatistics
from avdata.shards.card import dataset_card
from avdata.shards.members import read_members
from avdata.shards.reader import read_index, read_info, read_quarantine
from avdata.shards.sample import read_sample_bytes
from avdata.storage.hashing import hash_file


class PageParser(HTMLParser):
    """Text of a page, its gallery cards, and the URLs that it would request."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.requests: list[str] = []
        self.cards: list[dict[str, str | None]] = []
        self._skip = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._skip = tag in {"style", "script"}
        source = attributes.get("src") or (attributes.get("href") if tag == "link" else None)
        if source and not source.startswith("data:"):
            self.requests.append(source)
        if tag == "article":
            self.cards.append(attributes)

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def dataset(report_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(report_dataset, tmp_path / "dataset"))


def test_page_requests_nothing_and_is_smaller_than_5_mb(report_page: Path) -> None:
    assert PageParser(report_page).requests == []
    assert "url(" not in report_page.read_text(encoding="utf-8")
    assert report_page.stat().st_size < 5_000_000


def test_report_changes_no_file_of_the_dataset(report_dataset: Path, tmp_path: Path) -> None:
    before = digest_tree(report_dataset)
    avdata.report(report_dataset, tmp_path / "page.html")
    assert digest_tree(report_dataset) == before


def test_report_without_output_writes_into_the_dataset_which_stays_valid(dataset: Path) -> None:
    assert avdata.report(dataset) == dataset / "report.html"
    assert avdata.verify(dataset).ok


def test_page_lists_every_excluded_clip_with_its_detail_and_remedy(
    report_dataset: Path, report_page: Path
) -> None:
    text = PageParser(report_page).text
    rows = read_quarantine(report_dataset).to_pylist()
    assert len({row["reason"] for row in rows}) > 5
    for row in rows:
        assert row["key"] in text
        assert re.sub(r"\s+", " ", row["detail"]) in text
        assert REMEDIES[row["reason"]] in text


def test_gallery_shows_every_flagged_sample_and_each_label_of_each_split(
    report_dataset: Path, report_page: Path
) -> None:
    cards = PageParser(report_page).cards
    index = read_index(report_dataset).to_pylist()
    assert {row["key"] for row in index if row["flags"]} <= {card["data-text"] for card in cards}
    pairs = {(row["split"], row["label_name"]) for row in index}
    assert {(card["data-split"], card["data-label"]) for card in cards} == pairs


def test_audio_of_a_card_is_the_stored_flac(report_dataset: Path, report_page: Path) -> None:
    row = next(row for row in read_index(report_dataset).to_pylist() if row["flags"])
    stored = bytes(read_members(read_sample_bytes(report_dataset, row))["flac"])
    assert base64.b64encode(stored).decode() in report_page.read_text(encoding="utf-8")


def test_page_escapes_the_text_of_a_dataset(dataset: Path) -> None:
    info = read_info(dataset)
    info["title"] = "<script>alert(1)</script>"
    (dataset / "dataset.json").write_text(json.dumps(info))
    page = avdata.report(dataset).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_page_lists_a_damaged_sample_and_shows_the_others(dataset: Path) -> None:
    row = read_index(dataset).to_pylist()[0]
    with (dataset / row["shard"]).open("r+b") as stream:
        stream.seek(row["offset"] + 700)
        stream.write(b"damage")
    page = PageParser(avdata.report(dataset))
    assert f"{row['key']}: checksum mismatch in {row['shard']}" in page.text
    assert row["key"] not in {card["data-text"] for card in page.cards}
    assert page.cards


def test_page_of_a_dataset_without_audio_and_offsets_says_so(synthetic_set: Path, tmp_path: Path) -> None:
    page = PageParser(avdata.report(synthetic_set, tmp_path / "silent.html"))
    assert "No offset was measured" in page.text
    assert "This dataset stores no audio" in page.text
    assert page.cards


def test_first_screen_answers_what_the_dataset_is(report_dataset: Path, report_page: Path) -> None:
    text = PageParser(report_page).text
    for answer in (
        "CREMA-D has 7,442 clips.",
        "Mock: the media are generated", "16,000 Hz", "29.97 fps", "every byte of every sample",
        "[T = 4 steps, F = 128 mel bands, L = 128 columns of 5 ms]",
        "[T = 4 steps, H = 64, W = 64 pixels, C = 3 RGB]",
        "avdata mock cremad --output mock/cremad avdata prepare cremad --output out/cremad --source"
        " mock/cremad --set audio.flac=true --set video.size=64",
        f'avdata.open("{report_dataset}", split="train", shuffle=True)', "@article{cao2014cremad,",
    ):  # fmt: skip
        assert answer in text, answer


def test_key_list_has_the_keys_without_a_card_within_its_limit(
    report_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_index(report_dataset).to_pylist()
    skipped = {row["key"] for row in rows[::2]}
    listed = list_keys(report_dataset, skipped)
    assert {(split, label, key) for split, label, keys in listed or () for key in keys.split()} == {
        (row["split"], row["label_name"], row["key"]) for row in rows[1::2]
    }
    monkeypatch.setattr("avdata.reporting.key_list.MAX_BYTES", 10)
    assert list_keys(report_dataset, skipped) is None


def test_settings_list_only_what_differs_from_the_recipe(report_dataset: Path, report_page: Path) -> None:
    assert "2 settings differ from the preset snnergy" in PageParser(report_page).text
    info = read_info(report_dataset)
    info["config"] = load_recipe("cremad").configure("ogmge").model_dump(mode="json")
    overview = collect_overview(str(report_dataset), info, DatasetStatistics())
    assert (overview.preset, overview.changed) == ("ogmge", [])
    assert "--preset ogmge" in overview.command


def test_command_of_the_first_screen_prepares_the_same_dataset() -> None:
    config = build_config({"audio": {"fmax": 7000.0}, "select": {"split_by": "fold:1", "limit": 9}})
    changed = [Setting(*row) for row in diff_settings(Config().model_dump(mode="json"), config.model_dump())]
    arguments = [part for setting in changed for part in _argument(setting)]
    assert arguments == ["--set", "audio.fmax=7000.0", "--limit", "9", "--split-by", "fold:1"]
    value = {"audio": {"resize": [128, 64]}}
    assert parse_setting(_argument(Setting("audio.resize", None, [128, 64]))[1]) == value


def test_warnings_name_leaks_absent_labels_and_missing_splits(dataset: Path) -> None:
    info = read_info(dataset)
    info["leaks"] = 2
    info["splits"]["train"]["labels"] |= {"ANG": 0, "SAD": 0}
    warnings = " ".join(_warnings(info))
    assert "2 groups are in more than one split" in warnings
    assert "Train has no sample of 2 of 6 labels: ANG, SAD." in warnings
    info["splits"]["val"]["labels"] |= {"DIS": 0}
    assert "Val has no sample of" in " ".join(_warnings(info))
    del info["splits"]["val"], info["splits"]["test"]
    assert "No val or test split" in " ".join(_warnings(info))
    del info["splits"]["train"]
    assert "No train split" in " ".join(_warnings(info))


def test_report_plays_audio_from_the_source_if_the_dataset_stores_none(
    report_mock: Path, report_dataset: Path, changed_dataset: Path, tmp_path: Path
) -> None:
    avdata.report(changed_dataset, tmp_path / "without.html")
    assert "<audio" not in (tmp_path / "without.html").read_text()
    avdata.report(changed_dataset, tmp_path / "with.html", source=report_mock)
    text = (tmp_path / "with.html").read_text()
    row = next(row for row in read_index(report_dataset).to_pylist() if f'Audio of {row["key"]}"' in text)
    (audio,) = re.findall(rf'src="data:audio/webm;base64,([^"]+)"[^>]+Audio of {row["key"]}"', text)
    with av.open(io.BytesIO(base64.b64decode(audio))) as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    # The FLAC of the same clip in the other dataset is the truth.
    flac = bytes(read_members(read_sample_bytes(report_dataset, row))["flac"])
    truth, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
    preview = soxr.resample(decoded, 48_000, rate)[: len(truth)]
    shift = np.argmax(np.correlate(preview, truth, "full")) - (len(truth) - 1)
    assert abs(shift) <= rate * 0.001
    assert np.corrcoef(preview, truth)[0, 1] > 0.98


def test_source_files_that_changed_or_are_outside_are_not_played(report_mock: Path) -> None:
    path = next(report_mock.glob("AudioWAV/*.wav"))
    file = {"path": f"AudioWAV/{path.name}", "sha256": hash_file(path)}
    assert _verified_path(report_mock, file) == path
    assert _verified_path(report_mock, {**file, "sha256": "0" * 64}) is None
    assert _verified_path(report_mock / "AudioWAV", {**file, "path": f"../AudioWAV/{path.name}"}) is None


def test_report_refuses_a_source_that_is_no_folder(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        avdata.report(dataset, source=tmp_path / "gone")


def test_page_of_still_images_does_not_claim_a_shared_file(urbansound_bad: Path, tmp_path: Path) -> None:
    settings = {"video": {"size": 32}, "select": {"limit": 2}}
    avdata.prepare(
        "urbansound8k-av", source=urbansound_bad, output=tmp_path / "out", config=settings, workers=0
    )
    text = PageParser(avdata.report(tmp_path / "out")).text
    assert "No offset was measured" in text
    assert "one file" not in text


def test_page_against_another_dataset_shows_the_differences(
    report_dataset: Path, changed_dataset: Path, tmp_path: Path
) -> None:
    text = PageParser(avdata.report(report_dataset, tmp_path / "page.html", against=changed_dataset)).text
    assert "audio.amin" in text
    assert "16 samples are in both" in text
    assert text.index("What differs") < text.index("Prepare the same dataset")
    assert "two datasets compared" in text
    assert "lower bound of S that keeps silence finite" in text


@pytest.mark.parametrize("name", ["index.parquet", "quarantine.parquet"])
def test_report_and_verify_name_a_missing_table(dataset: Path, name: str) -> None:
    (dataset / name).unlink()
    for function in (avdata.report, avdata.verify):
        with pytest.raises(AvdataError, match=rf"{name} cannot be read \(no such file\)"):
            function(dataset)


def test_report_command_prints_the_path_of_the_page(report_dataset: Path, tmp_path: Path) -> None:
    arguments = ["report", str(report_dataset), "--output", str(tmp_path / "page.html")]
    process = subprocess.run(
        [sys.executable, "-m", "avdata.cli", *arguments], capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "page.html") in process.stdout
    assert (tmp_path / "page.html").is_file()


def test_page_and_card_render_without_facts_of_a_manifest(synthetic_set: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(synthetic_set, tmp_path / "set")
    info = json.loads((dataset / "dataset.json").read_text())
    info["source"] = {"checksums": "off"}
    (dataset / "dataset.json").write_text(json.dumps(info))
    assert "were not verified" in dataset_card(info)
    assert "Commit" not in avdata.report(dataset, tmp_path / "page.html").read_text()
