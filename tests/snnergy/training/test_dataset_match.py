"""Networks on datasets other than the one of their training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import snnergy
from avdata.errors import AvdataError
from snnergy.analysis.report import report
from snnergy.cli import app
from snnergy.data import mel_transform, move_to_device, open_split
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.training.checkpoint import load_network
from snnergy.training.evaluation import evaluate, match_dataset
from snnergy.training.trainer import train


def changed(where: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Return a copy of a dataset with another dataset.json and the same shards."""
    copy = folder / "changed"
    shutil.copytree(where, copy)
    info = json.loads((copy / "dataset.json").read_text())
    change(info)
    (copy / "dataset.json").write_text(json.dumps(info))
    return copy


def reverse_labels(info: dict[str, Any]) -> None:
    info["labels"].reverse()


def other_stats(info: dict[str, Any]) -> None:
    stats = info["mel_stats"]
    stats["mean"] = [value + 7 for value in stats["mean"]]
    stats["std"] = [value * 3 for value in stats["std"]]


def other_audio(info: dict[str, Any]) -> None:
    info["config"]["audio"].update(n_fft=256, flac=False)


def other_video(info: dict[str, Any]) -> None:
    info["config"]["video"].update(resize_mode="stretch", decoder="ffmpeg")


def new_label(info: dict[str, Any]) -> None:
    info["labels"][1] = "unheard"


def test_evaluate_matches_labels_by_name(tiny_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    plain = evaluate(tiny_run / "best.ckpt", tiny_set, device="cpu")
    other = evaluate(tiny_run / "best.ckpt", changed(tiny_set, tmp_path, reverse_labels), device="cpu")
    assert other["labels"] == plain["labels"]
    # The same predictions for samples whose true labels are exchanged.
    assert other["test"]["confusion"] == plain["test"]["confusion"][::-1]
    hits = sum(plain["test"]["confusion"][1 - label][label] for label in range(2))
    assert other["test"]["accuracy"] == pytest.approx(hits / 8)


def test_evaluate_uses_statistics_of_the_training(tiny_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    where = changed(tiny_set, tmp_path, other_stats)
    network, _ = load_network(tiny_run / "best.ckpt")
    mels = []
    for folder in (tiny_set, where):
        data = open_split(folder, "test", rank=0, world_size=1)
        facts, label_map = match_dataset(network, data)
        assert label_map is None
        batch = next(iter(data.loader(8, num_workers=0)))
        mels.append(move_to_device(batch, "cpu", mel_transform(data, facts=facts))[0])
    assert not torch.equal(batch.mel, mels[0])
    torch.testing.assert_close(mels[1], mels[0], rtol=1e-4, atol=1e-4)
    plain, other = (evaluate(tiny_run / "best.ckpt", folder, device="cpu") for folder in (tiny_set, where))
    assert other["test"]["loss"] == pytest.approx(plain["test"]["loss"], rel=0.02)


def test_waveforms_use_statistics_of_the_training(tiny_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    where = changed(tiny_set, tmp_path, other_stats)
    network, _ = load_network(tiny_run / "best.ckpt")
    mels = []
    for folder in (tiny_set, where):
        data = open_split(folder, "test", features="waveform", rank=0, world_size=1)
        batch = next(iter(data.loader(8, num_workers=0)))
        mels.append(move_to_device(batch, "cpu", mel_transform(data, facts=network.dataset))[0])
    assert torch.equal(*mels)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (other_audio, "audio.n_fft is 256, the training set has 512", "--set audio.n_fft=512"),
        (
            other_video,
            "video.resize_mode is stretch, the training set has crop",
            "--set video.resize_mode=crop",
        ),
        (
            new_label,
            "labels unheard are not among the network's 2: same, different",
            "labels of the training",
        ),
    ],
)
def test_unsuitable_dataset_is_rejected(
    change: Callable[[dict[str, Any]], None],
    message: str,
    hint: str,
    tiny_run: Path,
    tiny_set: Path,
    tmp_path: Path,
) -> None:
    where = changed(tiny_set, tmp_path, change)
    with pytest.raises(AvdataError) as raised:
        evaluate(tiny_run / "best.ckpt", where, device="cpu")
    assert message in raised.value.message
    assert hint in str(raised.value.hint)
    # Settings that change nothing about the arrays are not compared.
    assert "flac" not in raised.value.message
    assert "decoder" not in raised.value.message
    done = CliRunner().invoke(app, ["energy", str(tiny_run), str(where)])
    assert message in str(done.exception)
    assert message in report(tiny_run, tmp_path / "page.html", dataset=where).read_text().replace(
        "&#39;", "'"
    )


@pytest.mark.parametrize("change", [reverse_labels, other_stats, other_audio, new_label])
def test_resume_with_another_dataset_is_refused(
    change: Callable[[dict[str, Any]], None], tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    where = changed(tiny_set, tmp_path, change)
    with pytest.raises(AvdataError, match=r"^Dataset (is not the one of the run|does not match)"):
        train(where, tmp_path / "run", device="cpu", resume=True)


def test_save_pretrained_keeps_the_run_and_the_facts(tiny_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    before = (folder / "run.json").read_bytes()
    network, _ = load_network(folder / "best.ckpt")
    network.save_pretrained(folder)
    assert (folder / "run.json").read_bytes() == before
    again = snnergy.SNNergy.from_pretrained(folder)
    assert again.config == network.config
    assert again.dataset == DatasetFacts.of(open_split(tiny_set, "test").info)
    assert evaluate(folder / "best.ckpt", tiny_set, device="cpu")["labels"] == list(again.dataset.labels)


def test_network_without_facts_is_rejected(tiny_set: Path) -> None:
    with pytest.raises(AvdataError, match="no record of the dataset"):
        match_dataset(snnergy.build("nano"), open_split(tiny_set, "test"))


def test_facts_survive_json(tiny_set: Path) -> None:
    facts = DatasetFacts.of(open_split(tiny_set, "test").info)
    assert DatasetFacts.parse(json.loads(json.dumps(facts.dump()))) == facts
    with pytest.raises(ValueError, match="invalid facts"):
        DatasetFacts.parse({"labels": ["a"]})
