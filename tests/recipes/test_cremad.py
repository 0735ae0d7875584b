from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from avdata.recipes import cremad, cremad_mock

from avdata.errors import SourceError, UsageError
from avdata.manifest import load_manifest
from avdata.recipe import Clip, load_recipe

NOWHERE = (Path("x.flv"), Path("x.wav"))


@pytest.fixture(scope="module")
def stems() -> list[str]:
    return sorted({Path(facts.path).stem for facts in load_manifest("cremad").files})


def all_clips(stems: list[str]) -> list[Clip]:
    return cremad.make_clips(dict.fromkeys(stems, NOWHERE), lambda stem: cremad.speaker_split(stem[:4]))


def test_cremad_manifest_lists_one_wav_and_one_flv_for_each_of_7442_clips(stems: list[str]) -> None:
    files = load_manifest("cremad").files
    assert len(files) == 14_884
    assert len(stems) == 7_442
    assert sum(facts.bytes or 0 for facts in files if facts.path.startswith("AudioWAV/")) == 605_899_936
    assert sum(facts.bytes or 0 for facts in files if facts.path.startswith("VideoFlash/")) == 2_443_021_141


def test_make_clips_parses_all_file_names_with_the_published_counts(
    stems: list[str],
) -> None:
    clips = all_clips(stems)
    assert len(clips) == 7_442
    assert Counter(clip.label for clip in clips) == {
        "ANG": 1271, "DIS": 1271, "FEA": 1271, "HAP": 1271, "SAD": 1271, "NEU": 1087,
    }  # fmt: skip
    assert Counter(clip.extras["level"] for clip in clips) == {"XX": 6077, "LO": 455, "MD": 455, "HI": 455}
    sentences = Counter(clip.extras["sentence"] for clip in clips)
    assert sentences["IEO"] == 1456
    assert {sentences[name] for name in ("TSI", "DFA", "TAI", "IWL", "IWW", "IOM")} == {546}
    assert {sentences[name] for name in ("TIE", "ITS")} == {545}
    assert {sentences[name] for name in ("WSI", "ITH", "MTI")} == {540}
    actors = Counter(clip.group for clip in clips)
    assert len(actors) == 91
    odd = {actor: count for actor, count in actors.items() if count != 82}
    assert odd == {"1002": 81, "1076": 81, "1008": 76, "1009": 76, "1019": 76}


def test_speaker_split_matches_tensorflow_datasets(stems: list[str]) -> None:
    # TensorFlow Datasets excludes three duplicate WAV files and the clip that was once misnamed.
    # It keeps the four broken clips.
    left_out = {"1006_TIE_NEU_XX", "1013_WSI_DIS_XX", "1017_IWW_FEA_XX", "1040_ITH_SAD_XX"}
    splits = Counter(clip.split for clip in all_clips(stems) if clip.key not in left_out)
    assert splits == {"train": 5_144, "val": 738, "test": 1_556}


def test_make_clips_excludes_four_clips_and_keeps_each_actor_in_one_split(stems: list[str]) -> None:
    used = [clip for clip in all_clips(stems) if not clip.excluded]
    assert len(used) == 7_438
    assert Counter(clip.split for clip in used) == {"train": 5_142, "val": 738, "test": 1_558}
    assert all(
        len({clip.split for clip in used if clip.group == actor}) == 1 for actor in {c.group for c in used}
    )


@pytest.mark.parametrize(("fold", "size"), [(1, 1463), (2, 1470), (3, 1476), (4, 1474), (5, 1555)])
def test_fold_split_has_the_published_sizes(stems: list[str], fold: int, size: int) -> None:
    clips = cremad.make_clips(dict.fromkeys(stems, NOWHERE), lambda stem: cremad.fold_split(stem[:4], fold))
    assert sum(clip.split == "test" and not clip.excluded for clip in clips) == size


def test_make_clips_flags_78_mismatched_clips_and_three_duplicate_pairs(stems: list[str]) -> None:
    flags = Counter(flag for clip in all_clips(stems) for flag in clip.flags)
    assert flags["av_mismatch"] == 78
    assert flags["dup_audio_of"] == 6
    assert flags["reencoded"] == 31
    checksums = {facts.path: facts.checksum for facts in load_manifest("cremad").files}
    for one, other in cremad.CLIP_FACTS["dup_audio_of"].items():
        assert cremad.CLIP_FACTS["dup_audio_of"][other] == one
        assert checksums[f"AudioWAV/{one}.wav"] == checksums[f"AudioWAV/{other}.wav"]


def test_cremad_facts_name_clips_and_actors_of_the_file_table(stems: list[str]) -> None:
    assert {key for values in cremad.CLIP_FACTS.values() for key in values} <= set(stems)
    actors = {stem[:4] for stem in stems}
    assert {fact: set(values) for fact, values in cremad.ACTOR_FACTS.items()} == {
        "fold": actors,
        "speaker": actors,
    }
    assert Counter(cremad.ACTOR_FACTS["speaker"].values()) == {"train": 63, "val": 9, "test": 19}


def test_parse_ogmge_accepts_a_byte_order_mark_and_crlf() -> None:
    text = "\ufeff1041_TIE_NEU_XX,NEU\r\n1071_MTI_SAD_XX,SAD\r\n"
    assert cremad.parse_ogmge(text) == {"1041_TIE_NEU_XX": "NEU", "1071_MTI_SAD_XX": "SAD"}


def test_ogmge_split_takes_validation_actors_from_train() -> None:
    lists = {
        "train": {"1001_DFA_ANG_XX": "ANG", "1015_DFA_ANG_XX": "ANG"},
        "test": {"1015_DFA_DIS_XX": "DIS"},
    }
    got = [
        cremad.ogmge_split(stem, lists) for stem in ("1001_DFA_ANG_XX", "1015_DFA_ANG_XX", "1015_DFA_DIS_XX")
    ]
    assert got == ["train", "val", "test"]
    assert cremad.ogmge_split("1002_DFA_ANG_XX", lists) is None


def test_clips_rejects_a_missing_or_unpublished_ogmge_list(tmp_path: Path) -> None:
    (tmp_path / "VideoFlash").mkdir()
    (tmp_path / "VideoFlash" / "1001_DFA_ANG_XX.flv").write_bytes(b"FLV")
    with pytest.raises(SourceError, match=r"Split list of OGM-GE is missing: .*train\.csv"):
        cremad.clips(tmp_path, "ogmge")
    (tmp_path / "ogmge").mkdir()
    (tmp_path / "ogmge" / "train.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    with pytest.raises(SourceError, match="not the published list"):
        cremad.clips(tmp_path, "ogmge")


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    ("names", "video", "audio"),
    [
        (["VideoFlash/1001_DFA_ANG_XX.flv", "AudioWAV/1001_DFA_ANG_XX.wav"], 0, 1),
        (["VideoFlash/1001_DFA_ANG_XX.flv", "AudioWAV/1001_DFA_ANG_XX.WAV"], 0, 1),
        (["VideoMP4/1001_DFA_ANG_XX.mp4", "AudioWAV/1001_DFA_ANG_XX.wav"], 0, 1),
        (["VideoFlash/1001_DFA_ANG_XX.mkv", "AudioWAV/1001_DFA_ANG_XX.wav"], 0, 1),
        (["1001/ANG/1001_DFA_ANG_XX.mp4", "1001/ANG/1001_DFA_ANG_XX.wav"], 0, 1),
        (["CREMA-D/VideoFlash/1001_DFA_ANG_XX.MP4", "CREMA-D/AudioWAV/1001_DFA_ANG_XX.flac"], 0, 1),
        (["VideoFlash/1001_DFA_ANG_XX.mp4", "VideoFlash/1001_DFA_ANG_XX.flv"], 1, None),
        (["VideoFlash/1001_DFA_ANG_XX.flv", "AudioMP3/1001_DFA_ANG_XX.mp3"], 0, None),
    ],
)
def test_clips_accepts_the_layouts_of_copies(
    tmp_path: Path, names: list[str], video: int, audio: int | None
) -> None:
    (clip,) = cremad.clips(write(tmp_path, *names), "speaker")
    assert clip.video == tmp_path / names[video]
    assert clip.audio is not None
    assert clip.audio.is_file() == (audio is not None)
    if audio is not None:
        assert clip.audio == tmp_path / names[audio]


def test_clips_follows_links_to_folders_once(tmp_path: Path) -> None:
    media = write(tmp_path / "disk", "VideoFlash/1001_DFA_ANG_XX.flv")
    root = tmp_path / "root"
    root.mkdir()
    (root / "VideoFlash").symlink_to(media / "VideoFlash")
    (media / "VideoFlash" / "loop").symlink_to(root)
    (clip,) = cremad.clips(root, "speaker")
    assert clip.video is not None
    assert clip.video.is_file()


@pytest.mark.parametrize(
    "name", ["AudioWAV/1001_DFA_ANG_XX.wav", "1001_DFA_ANG_XX.WAV", "AudioMP3/1001_DFA_ANG_XX.mp3"]
)
def test_folder_of_audio_is_refused_or_prepared_without_frames(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    with pytest.raises(SourceError, match=r"only the audio of CREMA-D: 1 files") as caught:
        cremad.clips(tmp_path, "speaker")
    assert "avdata download cremad" in str(caught.value.hint)
    assert "avdata prepare cremad-audio" in str(caught.value.hint)
    (clip,) = load_recipe("cremad-audio").clips(tmp_path, "speaker")
    assert (clip.video, clip.audio) == (None, tmp_path / name)


def test_folder_of_parquet_files_is_named(tmp_path: Path) -> None:
    write(tmp_path, "data/train-00000-of-00001.parquet")
    with pytest.raises(SourceError, match=r"Parquet files, not the media.*train-00000") as caught:
        cremad.clips(tmp_path, "speaker")
    assert "avdata download cremad" in str(caught.value.hint)


def test_fold_3_states_how_it_differs_from_hicmae() -> None:
    assert "1040_ITH_SAD_XX, which HiCMAE drops" in cremad.SPLITS["fold:3"]
    assert "1040" not in cremad.SPLITS["fold:2"]


def test_clips_rejects_the_folder_of_another_dataset(ave_bad: Path) -> None:
    with pytest.raises(SourceError, match="holds no CREMA-D"):
        load_recipe("cremad").clips(ave_bad, "speaker")


def test_clips_accepts_the_misnamed_file_of_early_releases(cremad_bad: Path) -> None:
    found = {clip.key: clip for clip in cremad.clips(cremad_bad, "speaker")}
    audio = found["1040_ITH_SAD_XX"].audio
    assert audio is not None
    assert audio.name == "1040_ITH_SAD_X.wav"
    assert audio.is_file()


def test_write_mock_rejects_more_clips_than_unique_names(tmp_path: Path) -> None:
    stems = {cremad_mock._plain(*place, 0, 0).stem for place in cremad_mock._places(6_552)}
    assert len(stems) == 6_552
    with pytest.raises(UsageError, match="6,552"):
        cremad_mock.write_mock(tmp_path, 6_553, bad=False, seed=0)
