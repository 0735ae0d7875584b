"""Filterbank of a preparation: librosa computes it in the parent process, the workers receive it."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
from support import worker_modules
from support.worker_modules import recorded_modules, run_and_record_modules

import avdata
from avdata.config.schema import Config, build_config
from avdata.errors import AvdataError
from avdata.features.audio import feature_filterbank
from avdata.features.audio.mel_filterbank import mel_filterbank
from avdata.pipeline.output_dir import LocalOutput
from avdata.pipeline.planning import plan_preparation
from avdata.pipeline.shard_job import ShardJob
from avdata.shards.sample import load_sample

HEAVY = {"librosa", "numba", "scipy", "torch"}
SETTINGS = {"video": {"size": 16}, "select": {"limit": 3}}


@pytest.fixture(autouse=True)
def _new_filterbanks() -> Iterator[None]:
    """Compute the filterbanks of each test in that test."""
    mel_filterbank.cache_clear()
    yield
    mel_filterbank.cache_clear()


def modules_of_a_worker(
    feature: str, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    monkeypatch.setenv("PYTHONPATH", str(Path(worker_modules.__file__).parents[1]))
    monkeypatch.setattr("avdata.pipeline.shard_job.run_shard_job", run_and_record_modules)
    settings = {**SETTINGS, "audio": {"feature": feature}}
    avdata.prepare("cremad", source=source, output=output, config=settings, workers=1)
    return set(json.loads(recorded_modules(output).read_text(encoding="utf-8")))


@pytest.mark.parametrize("feature", ["log-mel", "log-stft", "kaldi-fbank"])
def test_worker_imports_neither_librosa_nor_torch(
    feature: str, cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = modules_of_a_worker(feature, cremad_mock, tmp_path / "out", monkeypatch)
    assert "avdata.features.audio.mel_filterbank" in modules
    assert not HEAVY & modules


def test_worker_imports_librosa_for_pcen(
    cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = modules_of_a_worker("pcen", cremad_mock, tmp_path / "out", monkeypatch)
    assert "librosa" in modules
    assert "torch" not in modules


@pytest.mark.parametrize("workers", [0, 1])
def test_prepare_stores_mels_of_the_parents_filterbank(
    workers: int, cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "as-is", config=SETTINGS, workers=1)
    compute_filters = librosa.filters.mel
    monkeypatch.setattr(librosa.filters, "mel", lambda **options: 100 * compute_filters(**options))
    mel_filterbank.cache_clear()
    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "louder", config=SETTINGS, workers=workers)
    mel, louder = (load_sample(tmp_path / name).mel.astype(np.float32) for name in ("as-is", "louder"))
    is_sound = mel > -90  # silence has the lower bound of the decibels
    assert np.allclose(louder[is_sound], mel[is_sound] + 20, atol=0.1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("feature", ["log-mel", "pcen"])
def test_prepare_without_librosa_raises(
    feature: str, workers: int, cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    settings = {**SETTINGS, "audio": {"feature": feature}}
    with pytest.raises(AvdataError, match="librosa cannot be imported"):
        avdata.prepare(
            "cremad", source=cremad_mock, output=tmp_path / "out", config=settings, workers=workers
        )
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_prepare_of_log_stft_needs_no_librosa(
    cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    settings = {**SETTINGS, "audio": {"feature": "log-stft"}}
    done = avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "out", config=settings, workers=1)
    assert done.samples == 3


def test_shard_job_grows_by_less_than_6_kb_and_keeps_its_fingerprint(
    cremad_mock: Path, tmp_path: Path
) -> None:
    plan = plan_preparation("cremad", source=cremad_mock, config=build_config({"select": {"limit": 3}}))
    name, clips = plan.jobs[0]
    job = ShardJob(LocalOutput(tmp_path), name, clips, plan.config, plan.recipe.labels, None)
    equipped = replace(job, filterbank=feature_filterbank(Config().audio))
    assert len(pickle.dumps(equipped)) - len(pickle.dumps(job)) < 6_000
    assert equipped.fingerprint == job.fingerprint
