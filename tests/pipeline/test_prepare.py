from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.trees import digest_tree

import avdata
from avdata.config.overrides import merge_overrides, parse_setting, read_config_file
from avdata.config.schema import Config
from avdata.errors import AvdataError, SourceError, UsageError
from avdata.pipeline import plan_checks
from avdata.pipeline.engines.base import NO_ITEM
from avdata.pipeline.output_dir import LocalOutput
from avdata.pipeline.planning import plan_preparation
from avdata.pipeline.shard_job import ShardJob, run_shard_job
from avdata.pipeline.validation import SourceFile, ValidClip
from avdata.shards.reader import read_index, read_info, read_quarantine

SETTINGS = {"video": {"size": 32}, "shards": {"samples_per_shard": 3}}
RECORDED = [name for name in avdata.recipe_names() if not avdata.load_recipe(name).generated]
EXHAUSTIVE = pytest.mark.exhaustive

KILLED = """
import os, sys, avdata, json
name, source, out, workers, after = sys.argv[1:]
def die(stage, done, total):
    if stage == "prepare" and done >= total * float(after):
        os.kill(os.getpid(), 9)
settings = json.loads(os.environ["SETTINGS"])
avdata.prepare(name, source=source, output=out, config=settings, workers=int(workers), progress=die)
"""


def run_and_kill(name: str, source: Path, out: Path, workers: int, after: float) -> None:
    command = [sys.executable, "-c", KILLED, name, str(source), str(out), str(workers), str(after)]
    done = subprocess.run(
        command, env={**os.environ, "SETTINGS": json.dumps(SETTINGS)}, timeout=600, check=False
    )
    assert done.returncode == -9


@pytest.mark.parametrize("name", RECORDED)
def test_prepare_matches_the_ground_truth_of_a_mock(
    name: str, tmp_path: Path, bad_mock: Callable[[str], Path]
) -> None:
    source = bad_mock(name)
    done = avdata.prepare(name, source=source, output=tmp_path / "out", config=SETTINGS, workers=0)
    truth = json.loads((source / "truth.json").read_text())
    lost = {row["key"]: row["reason"] for row in read_quarantine(done.root).to_pylist()}
    kept = {row["key"]: row["flags"] for row in read_index(done.root).to_pylist()}
    assert lost.keys() | kept.keys() == truth.keys()
    assert lost == {key: facts["reason"] for key, facts in truth.items() if facts["reason"]}
    own = {"frames_are_static"}
    assert {key: set(flags) - own for key, flags in kept.items()} == {
        key: set(facts["flags"]) for key, facts in truth.items() if not facts["reason"]
    }
    assert done.over_quarantine
    assert avdata.verify(done.root).problems == ()


@pytest.mark.parametrize(
    "name",
    [name if name == "cremad" else pytest.param(name, marks=EXHAUSTIVE) for name in RECORDED],
)
def test_prepare_resumes_after_a_kill_to_identical_bytes_with_any_worker_count(
    name: str, tmp_path: Path, bad_mock: Callable[[str], Path]
) -> None:
    source = bad_mock(name)
    avdata.prepare(name, source=source, output=tmp_path / "one", config=SETTINGS, workers=1)
    run_and_kill(name, source, tmp_path / "two", workers=2, after=0.5)
    assert not (tmp_path / "two" / "dataset.json").exists()
    assert (tmp_path / "two" / ".avdata").is_dir()
    avdata.prepare(name, source=source, output=tmp_path / "two", config=SETTINGS, workers=2)
    avdata.prepare(name, source=source, output=tmp_path / "zero", config=SETTINGS, workers=0)
    assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "two") == digest_tree(tmp_path / "zero")


def test_run_shard_job_reports_each_clip_before_decoding_and_no_item_before_commit(
    synthetic_mock: Path, tmp_path: Path
) -> None:
    planned = plan_preparation("synthetic", source=synthetic_mock, config={"select": {"limit": 3}})
    name, clips = planned.jobs[0]
    recipe, told = planned.recipe, list[tuple[str, bool]]()
    job = ShardJob(LocalOutput(tmp_path), name, clips, planned.config, recipe.labels, recipe.background)
    run_shard_job(job, lambda item: told.append((item, (tmp_path / name).exists())))
    assert told == [*((candidate.clip.key, False) for candidate in clips), (NO_ITEM, False)]
    assert (tmp_path / name).exists()


def test_prepare_drops_shards_of_an_interrupted_run_with_fewer_files(
    cremad_mock: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(cremad_mock, tmp_path / "source")
    late = sorted(source.glob("VideoFlash/*.flv"))[::2]
    for path in late:
        path.rename(tmp_path / path.name)
    run_and_kill("cremad", source, tmp_path / "out", workers=0, after=0.9)
    assert list((tmp_path / "out").glob("*/*.tar"))
    for path in late:
        (tmp_path / path.name).rename(path)
    avdata.prepare("cremad", source=source, output=tmp_path / "out", config=SETTINGS, workers=0)
    assert avdata.verify(tmp_path / "out").problems == ()


def test_plan_preparation_uses_sources_generated_by_a_concurrent_run(
    synthetic_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))
    recipe = avdata.load_recipe("synthetic")
    folder = tmp_path / "cache" / "generated" / "synthetic-1"

    def mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
        # The concurrent run has finished first and already uses its clips.
        shutil.copytree(synthetic_mock, folder)
        (out / "clips").mkdir(parents=True)
        for path in synthetic_mock.glob("clips/*"):
            (out / "clips" / path.name).write_bytes(b"half of it")

    planned = plan_preparation(replace(recipe, mock=mock))
    assert digest_tree(folder) == digest_tree(synthetic_mock)
    assert len(planned.clips) == 44
    assert list(folder.parent.iterdir()) == [folder]


def test_prepare_names_the_source_file_that_disappeared(synthetic_mock: Path, tmp_path: Path) -> None:
    source = shutil.copytree(synthetic_mock, tmp_path / "source")

    def go(stage: str, done: int, total: int) -> None:
        if stage == "prepare":
            shutil.rmtree(source, ignore_errors=True)

    with pytest.raises(
        SourceError, match=r"Source file cannot be read: .*source/clips/\w+\.mkv \(No such file"
    ):
        avdata.prepare("synthetic", source=source, output=tmp_path / "out", workers=0, progress=go)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"key": "k" * 90}, "at most 89"),
        ({"label": "differnt"}, "Unknown label 'differnt' of the clip xor00000"),
        ({"split": "valid"}, "Unknown split 'valid' of the clip xor00000"),
    ],
)
def test_plan_preparation_rejects_invalid_clips_of_a_recipe(
    synthetic_mock: Path, odd: dict[str, str], said: str
) -> None:
    recipe = avdata.load_recipe("synthetic")

    def clips(root: Path, split_by: str) -> list[avdata.Clip]:
        first, *others = recipe.clips(root, split_by)
        return [replace(first, **odd), *others]  # type: ignore[arg-type]

    with pytest.raises(AvdataError, match=said):
        plan_preparation(replace(recipe, clips=clips), source=synthetic_mock)


def test_prepare_resumes_without_rewriting_finished_shards(cremad_mock: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_and_kill("cremad", cremad_mock, out, workers=0, after=0.6)
    there = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    assert there
    decoded: list[int] = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "prepare":
            decoded.append(done)

    avdata.prepare("cremad", source=cremad_mock, output=out, config=SETTINGS, workers=0, progress=watch)
    assert decoded[0] > 0
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_prepare_keeps_a_finished_dataset(cremad_set: Path, cremad_mock: Path) -> None:
    before = digest_tree(cremad_set)
    settings = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}
    done = avdata.prepare("cremad", source=cremad_mock, output=cremad_set, config=settings, workers=0)
    assert done.samples == 14
    assert digest_tree(cremad_set) == before


def test_prepare_rejects_other_settings_and_keeps_the_dataset(cremad_set: Path, cremad_mock: Path) -> None:
    before = digest_tree(cremad_set)
    with pytest.raises(AvdataError, match="Config mismatch") as caught:
        avdata.prepare(
            "cremad", source=cremad_mock, output=cremad_set, config={"audio": {"n_mels": 64}}, workers=0
        )
    assert "--overwrite" in str(caught.value.hint)
    assert digest_tree(cremad_set) == before


def test_prepare_rejects_another_recipe_and_keeps_the_dataset(cremad_set: Path, synthetic_mock: Path) -> None:
    before = digest_tree(cremad_set)
    with pytest.raises(AvdataError, match="it holds cremad, requested synthetic"):
        avdata.prepare("synthetic", source=synthetic_mock, output=cremad_set, workers=0)
    assert digest_tree(cremad_set) == before


def test_prepare_rejects_a_folder_with_other_files_even_with_overwrite(
    synthetic_mock: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(AvdataError, match="holds no prepared dataset"):
            avdata.prepare(
                "synthetic", source=synthetic_mock, output=tmp_path, workers=0, overwrite=overwrite
            )
    assert digest_tree(tmp_path).keys() == {"thesis.tex"}


def test_prepare_overwrite_replaces_a_dataset(synthetic_mock: Path, tmp_path: Path) -> None:
    avdata.prepare("synthetic", source=synthetic_mock, output=tmp_path / "out", workers=0)
    settings = {"shards": {"samples_per_shard": 5}}
    avdata.prepare(
        "synthetic",
        source=synthetic_mock,
        output=tmp_path / "out",
        config=settings,
        overwrite=True,
        workers=0,
    )
    avdata.prepare("synthetic", source=synthetic_mock, output=tmp_path / "new", config=settings, workers=0)
    assert digest_tree(tmp_path / "out") == digest_tree(tmp_path / "new")


def test_prepare_rejects_changed_source_files(synthetic_mock: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(synthetic_mock, source)
    avdata.prepare("synthetic", source=source, output=tmp_path / "out", workers=0)
    video = next((source / "clips").glob("*.mkv"))
    video.write_bytes(video.read_bytes() + b"\0")
    with pytest.raises(AvdataError, match="Source files changed"):
        avdata.prepare("synthetic", source=source, output=tmp_path / "out", workers=0, checksums=False)


def test_prepare_rejects_an_empty_and_a_missing_source_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no CREMA-D"):
        avdata.prepare("cremad", source=tmp_path, output=tmp_path / "out")
    with pytest.raises(SourceError, match="nowhere does not exist"):
        avdata.prepare("cremad", source=tmp_path / "nowhere", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_suggests_git_lfs_pull_for_lfs_pointers(tmp_path: Path) -> None:
    for folder, suffix in (("AudioWAV", "wav"), ("VideoFlash", "flv")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"1001_DFA_ANG_XX.{suffix}").write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        )
    with pytest.raises(SourceError, match="lfs_pointer") as caught:
        avdata.prepare("cremad", source=tmp_path, output=tmp_path / "out")
    assert "git lfs pull" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "snergy"}, "snnergy"),
        ({"config": {"video": {"num_framez": 8}}}, "video.num_frames"),
        ({"config": {"select": {"split_by": "speakers"}}}, "speaker"),
    ],
)
def test_prepare_suggests_the_nearest_known_name(
    options: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        avdata.prepare("cremad", source=tmp_path, output=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert said in str(caught.value.hint)


def test_plan_preparation_limit_selects_the_same_clips_of_all_splits(cremad_mock: Path) -> None:
    settings = {"select": {"limit": 6}}
    first = plan_preparation("cremad", source=cremad_mock, config=settings)
    assert len(first.clips) == 6
    assert {clip.split for clip in first.clips} == {"train", "val", "test"}
    assert [clip.key for clip in plan_preparation("cremad", source=cremad_mock, config=settings).clips] == [
        clip.key for clip in first.clips
    ]


def test_prepare_drops_leaking_groups_from_train_if_requested(ave_bad: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "select": {"group_leakage": "drop-train", "limit": 40}}
    done = avdata.prepare("ave", source=ave_bad, output=tmp_path / "out", config=settings, workers=0)
    assert done.quarantined["split_leak"] == 1
    assert read_info(done.root)["leaks"] == 0


def test_prepare_stores_no_container_metadata(cremad_set: Path, cremad_mock: Path) -> None:
    name = b"Jane Example Participant"
    assert all(name in path.read_bytes() for path in cremad_mock.glob("VideoFlash/*.flv"))
    assert not any(name in path.read_bytes() for path in cremad_set.rglob("*") if path.is_file())


def test_plan_preparation_applies_the_audio_source_setting(cremad_bad: Path) -> None:
    auto = plan_preparation("cremad", source=cremad_bad, config={"audio": {"source": "auto"}})
    wav = plan_preparation("cremad", source=cremad_bad, config={"audio": {"source": "wav"}})
    assert "1003_WSI_DIS_XX" in {clip.key for clip in auto.clips}
    assert ("1003_WSI_DIS_XX", "missing_audio") in {(one.key, one.reason) for one in wav.quarantined}


def test_plan_preparation_reports_missing_audio_for_still_images(urbansound_bad: Path) -> None:
    with pytest.raises(SourceError, match="missing_audio; the first: a still image has no sound") as caught:
        plan_preparation("urbansound8k-av", source=urbansound_bad, config={"audio": {"source": "container"}})
    assert "--audio-source auto" in str(caught.value.hint)


def test_plan_preparation_estimates_more_bytes_for_larger_formats(cremad_mock: Path) -> None:
    def size(storage: str, flac: bool) -> int:
        config = {"video": {"storage": storage}, "audio": {"flac": flac}}
        return plan_preparation("cremad", source=cremad_mock, config=config).bytes()

    assert size("jpeg", False) < size("jpeg", True) < size("png", True) < size("npy", True)
    assert size("png", False) < size("png", True)


def test_config_file_overrides_the_preset_and_settings_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("video: {num_frames: 8, size: 64}\n")
    config = avdata.load_recipe("cremad").configure(
        "snnergy", merge_overrides(read_config_file(tmp_path / "mine.yaml"), parse_setting("video.size=32"))
    )
    assert (config.video.num_frames, config.video.size, config.audio.n_mels) == (8, 32, 128)
    (tmp_path / "bad.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="no mapping"):
        read_config_file(tmp_path / "bad.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_config_file(tmp_path / "none.yaml")


def test_plan_preparation_rejects_the_manifest_of_another_dataset(cremad_mock: Path, ave_bad: Path) -> None:
    with pytest.raises(UsageError, match="is of ave, not of cremad"):
        plan_preparation("cremad", source=cremad_mock, manifest=ave_bad / "manifest.json")


def test_plan_preparation_warns_about_an_incomplete_source(
    cremad_mock: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = json.loads((cremad_mock / "manifest.json").read_text())
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**facts, "mock": False, "expected": {"clips": 7442, "usable": 14}}))
    plan_preparation("cremad", source=cremad_mock, manifest=manifest)
    assert "14 clips of 7,442" in caplog.text
    assert "usable" not in caplog.text


def test_prepare_warns_once_if_more_than_one_percent_use_the_audio_of_the_video(
    cremad_mock: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = shutil.copytree(cremad_mock, tmp_path / "source")
    for audio in sorted((source / "AudioWAV").iterdir())[:2]:
        audio.unlink()

    def warnings(**audio: str) -> list[str]:
        caplog.clear()
        out = tmp_path / "-".join(["out", *audio.values()])
        settings = {**SETTINGS, "audio": audio}
        avdata.prepare("cremad", source=source, output=out, config=settings, workers=0, checksums=False)
        return [record.getMessage() for record in caplog.records if "container_audio" in record.getMessage()]

    (warning,) = warnings()
    assert "audio files of 2 of 14 clips are missing" in warning
    assert "--audio-source wav" in warning
    assert warnings(source="wav") == []
    assert warnings(source="container") == []


@pytest.mark.parametrize(("count", "is_expected"), [(0, False), (2, False), (3, True), (200, True)])
def test_one_percent_of_container_audio_needs_no_warning(
    count: int, is_expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clip = avdata.Clip(key="k", label="a", group="g", split="train", video=Path("v"), audio=Path("a"))
    complete, incomplete = (ValidClip(clip, None, audio) for audio in (SourceFile("a", "0" * 64, 1), None))
    candidates = [incomplete] * count + [complete] * (200 - count)
    checks = plan_checks.PlanChecks(["a"])
    for candidate in candidates:
        checks.add(candidate)
    checks.warn(Config())
    assert bool(caplog.records) is is_expected


def test_reprs_of_a_plan_and_a_prepared_dataset_are_one_line(cremad_mock: Path, cremad_set: Path) -> None:
    settings = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}
    plan = plan_preparation("cremad", source=cremad_mock, config=settings)
    done = avdata.prepare("cremad", source=cremad_mock, output=cremad_set, config=settings, workers=0)
    assert (
        repr(plan)
        == "PreparationPlan(cremad: train 6, val 4, test 4 clips in 4 shards; 0 clips in quarantine)"
    )
    assert repr(done) == f"PreparedSet('{cremad_set}': train 6, val 4, test 4 samples; 0 clips in quarantine)"
