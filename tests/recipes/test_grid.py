from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from avdata.recipes import grid

import avdata
from avdata.errors import SourceError, UsageError
from avdata.manifest import load_manifest

ALIGNMENT = """0 16000 sil
16000 21250 bin
21250 26500 blue
26500 27000 sp
27000 27750 in
27750 31000 e
31000 38000 eight
38000 44750 now
44750 74500 sil
"""


def write_copy(root: Path, *stems: str, folder: str = "s1", alignments: str = "alignments/s1") -> Path:
    for stem in stems:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{stem}.mpg").write_bytes(b"x")
        (root / alignments).mkdir(parents=True, exist_ok=True)
        (root / alignments / f"{stem}.align").write_text(ALIGNMENT)
    return root


@pytest.mark.parametrize(
    ("word", "label", "event"),
    [
        ("command", "bin", (0.64, 0.85)),
        ("color", "blue", (0.85, 1.06)),
        ("preposition", "in", (1.08, 1.11)),
        ("letter", "e", (1.11, 1.24)),
        ("digit", "eight", (1.24, 1.52)),
        ("adverb", "now", (1.52, 1.79)),
    ],
)
def test_label_and_event_are_those_of_the_chosen_word(
    tmp_path: Path, word: str, label: str, event: tuple[float, float]
) -> None:
    (clip,) = grid.clips(write_copy(tmp_path, "bbie8n"), "speaker", {"word": word})
    assert (clip.key, clip.label, clip.group, clip.excluded) == ("s1_bbie8n", label, "s1", None)
    assert clip.event == pytest.approx(event)
    assert label in grid.labels(tmp_path, [clip], {"word": word})


def test_words_have_the_published_numbers_and_unknown_ones_are_rejected(tmp_path: Path) -> None:
    assert {word: len(words) for word, words in grid.WORDS.items()} == {
        "command": 4, "color": 4, "preposition": 4, "letter": 25, "digit": 10, "adverb": 4,
    }  # fmt: skip
    with pytest.raises(UsageError, match="Invalid task option word=colour") as caught:
        grid.clips(tmp_path, "speaker", {"word": "colour"})
    assert "color" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (None, "has no alignment"),
        (ALIGNMENT.replace("blue", "red"), "other words than the name: bin red in"),
        (ALIGNMENT.replace("38000 44750", "44750 44750"), "empty interval"),
        (ALIGNMENT.replace("38000", "x"), "cannot be read"),
        ("", "other words"),
    ],
)
def test_clip_whose_alignment_does_not_match_is_excluded(
    tmp_path: Path, text: str | None, detail: str
) -> None:
    write_copy(tmp_path, "bbie8n", "bbir9a")
    path = tmp_path / "alignments" / "s1" / "bbie8n.align"
    path.unlink() if text is None else path.write_text(text)
    clip = grid.clips(tmp_path, "speaker", {})[0]
    assert detail in str(clip.excluded)
    assert clip.excluded_reason == "no_label"


@pytest.mark.parametrize(
    ("folder", "alignments"),
    [("s1", "alignments/s1"), ("video/s1", "align/s1"), ("s1/video/mpg_6000", "s1/align")],
)
def test_clips_accepts_the_layouts_of_copies(tmp_path: Path, folder: str, alignments: str) -> None:
    write_copy(tmp_path, "bbie8n", folder=folder, alignments=alignments)
    (clip,) = grid.clips(tmp_path, "speaker", {})
    assert (clip.group, clip.excluded) == ("s1", None)


def test_clips_accepts_the_folder_of_one_speaker(tmp_path: Path) -> None:
    write_copy(tmp_path, "bbie8n", folder="s1", alignments="s1/align")
    (clip,) = grid.clips(tmp_path / "s1", "speaker", {})
    assert clip.group == "s1"


def test_splits_divide_speakers_or_sentences() -> None:
    speakers = [number for number in range(1, 35) if number != 21]
    for split_by, held_out in (("speaker", {8, 16, 24, 32}), ("unseen", {1, 2, 20, 22})):
        splits = {number: grid.split_of(number, "bbie8n", split_by) for number in speakers}
        assert {number for number in speakers if splits[number] == "test"} == held_out
        assert Counter(splits.values()) == {"train": 25, "val": 4, "test": 4}
    # From `printf STEM | md5sum`, modulo 5.
    known = {
        "bbie8n": "train",
        "bgauzp": "train",
        "swwv6n": "test",
        "pbiizn": "train",
        "lwiy8p": "val",
        "sgwj5s": "val",
    }
    assert {stem: grid.split_of(1, stem, "sentence") for stem in known} == known


def test_clips_rejects_folders_without_videos_or_alignments(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no clips of GRID"):
        grid.clips(tmp_path, "speaker", {})
    write_copy(tmp_path, "bbie8n")
    (tmp_path / "alignments" / "s1" / "bbie8n.align").unlink()
    with pytest.raises(SourceError, match="1 clips of GRID and no alignments"):
        grid.clips(tmp_path, "speaker", {})


def test_event_of_the_mock_contains_its_flash(bad_mock: Callable[[str], Path]) -> None:
    source = bad_mock("grid")
    truth = json.loads((source / "truth.json").read_text())
    clips = [clip for clip in grid.clips(source, "speaker", {}) if clip.event]
    assert len(clips) >= 8
    for clip in clips:
        assert clip.event is not None
        assert sum(clip.event) / 2 == pytest.approx(truth[clip.key]["flash"][0], abs=1e-4)


def test_manifest_has_an_archive_of_each_speaker_with_videos() -> None:
    manifest = load_manifest("grid")
    assert len(manifest.sources) == manifest.expected["speakers"] + 1 == 34
    assert "s21" not in {source.name for source in manifest.sources}
    assert manifest.license.publish == "yes"
    assert avdata.load_recipe("grid").configure(None).align.window == "event"
