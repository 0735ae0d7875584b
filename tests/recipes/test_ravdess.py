from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from avdata.recipes import ravdess

import avdata
from avdata.errors import SourceError, UsageError
from avdata.manifest import load_manifest


def write_clips(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_clip_states_the_parts_of_the_name(tmp_path: Path) -> None:
    write_clips(tmp_path, "Video_Speech_Actor_12/Actor_12/01-01-06-02-02-01-12.mp4")
    (clip,) = ravdess.clips(tmp_path, "actor", {})
    assert (clip.key, clip.label, clip.group, clip.split) == (
        "01-01-06-02-02-01-12", "fearful", "actor-12", "train",
    )  # fmt: skip
    assert clip.extras == {
        "actor": 12, "channel": "speech", "intensity": "strong", "statement": 2, "repetition": 1,
    }  # fmt: skip


def test_silent_copies_and_sounds_are_no_clips(tmp_path: Path) -> None:
    write_clips(
        tmp_path,
        "Actor_01/01-01-01-01-01-01-01.mp4",
        "Actor_01/02-01-01-01-01-01-01.mp4",
        "Actor_01/03-01-01-01-01-01-01.wav",
        "Actor_01/01-01-09-01-01-01-01.mp4",
        "Actor_25/01-01-01-01-01-01-25.mp4",
    )
    assert [clip.key for clip in ravdess.clips(tmp_path, "actor", {})] == ["01-01-01-01-01-01-01"]


def test_channel_chooses_speech_or_song(tmp_path: Path) -> None:
    write_clips(tmp_path, "01-01-01-01-01-01-01.mp4", "01-02-01-01-01-01-01.mp4")
    found = {
        channel: [clip.extras["channel"] for clip in ravdess.clips(tmp_path, "actor", options)]
        for channel, options in
        {"": {}, **{name: {"channel": name} for name in ("speech", "song", "both")}}.items()
    }  # fmt: skip
    assert found == {
        "": ["speech", "song"],
        "speech": ["speech"],
        "song": ["song"],
        "both": ["speech", "song"],
    }
    with pytest.raises(UsageError, match="Invalid task option channel=sung") as caught:
        ravdess.clips(tmp_path, "actor", {"channel": "sung"})
    assert "song" in str(caught.value.hint)


def test_splits_divide_no_actor_and_hold_out_each_once() -> None:
    actors = range(1, 25)
    folds = [{actor: ravdess.split_of(actor, f"fold:{fold}") for actor in actors} for fold in range(1, 7)]
    for splits in (*folds, {actor: ravdess.split_of(actor, "actor") for actor in actors}):
        assert Counter(splits.values()) == {"train": 16, "val": 4, "test": 4}
        # Odd actors are men.
        assert sum(actor % 2 for actor in actors if splits[actor] == "test") == 2
    for split in ("test", "val"):
        assert sorted(actor for splits in folds for actor in actors if splits[actor] == split) == [*actors]
    assert {actor for actor in actors if ravdess.split_of(actor, "actor") == "test"} == {21, 22, 23, 24}


def test_labels_have_the_published_numbers() -> None:
    assert len(ravdess.LABELS) == 8
    assert (ravdess.LABELS[0], ravdess.LABELS[5], ravdess.LABELS[7]) == ("neutral", "fearful", "surprised")


def test_manifest_has_the_archives_and_counts_of_the_record() -> None:
    manifest = load_manifest("ravdess")
    assert len(manifest.sources) == 24 + 23
    assert "zenodo:1188976/Video_Song_Actor_18.zip" not in {
        url for one in manifest.sources for url in one.urls
    }
    # Per actor 4 speech clips of neutral and 8 of each other emotion; 4 and 8 of six emotions sung.
    assert manifest.expected["speech"] == 24 * (4 + 7 * 8)
    assert manifest.expected["song"] == 23 * (4 + 5 * 8)


def test_clips_rejects_a_folder_without_videos(tmp_path: Path) -> None:
    write_clips(tmp_path, "Actor_01/03-01-01-01-01-01-01.wav")
    with pytest.raises(SourceError, match="holds no videos of RAVDESS"):
        ravdess.clips(tmp_path, "actor", {})


def test_mock_refuses_more_clips_than_the_dataset_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avdata.recipes.ravdess_mock.write_av", lambda path, *_, **__: None)
    with pytest.raises(UsageError, match="fewer clips than a mock of 9,000"):
        avdata.mock("ravdess", tmp_path / "raw", clips=9_000)
