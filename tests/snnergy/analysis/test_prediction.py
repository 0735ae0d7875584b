from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import avdata
import snnergy
from avdata.errors import AvdataError
from snnergy.cli import app
from snnergy.models.dataset_facts import DatasetFacts


@pytest.fixture(scope="module")
def network(tiny_set: Path) -> snnergy.SNNergy:
    """Network for the samples of `tiny_set`, in evaluation mode."""
    torch.manual_seed(0)
    data = avdata.open(tiny_set, "train")
    model = snnergy.build("nano", num_classes=len(data.labels), dims=(4, 8, 8), heads=(1, 1, 1))
    model.head.weight.data.mul_(50)
    arguments = model.preprocess(next(iter(data.loader(16, num_workers=0))))
    snnergy.recalibrate(model, [(arguments["audio"], arguments["video"])])
    model.dataset = DatasetFacts.of(data.info)
    return model.eval()


def test_predict_of_a_file_equals_that_of_its_sample(
    network: snnergy.SNNergy, tiny_set: Path, synthetic_mock: Path
) -> None:
    of_samples = {each.source: each for each in snnergy.predict(network, tiny_set, device="cpu")}
    data = avdata.open(tiny_set, "test")
    assert set(of_samples) == set(data.keys)
    keys = data.keys[:3]
    files = [synthetic_mock / data.find(key).metadata["sources"]["video"]["path"] for key in keys]
    for key, file, each in zip(keys, files, snnergy.predict(network, files, device="cpu"), strict=True):
        assert each.source == str(file)
        assert each.probabilities == pytest.approx(of_samples[key].probabilities, abs=1e-5)
        assert sum(each.probabilities.values()) == pytest.approx(1)
        assert each.label == max(each.probabilities, key=each.probabilities.__getitem__)
    assert len({each.probabilities[data.labels[0]] for each in of_samples.values()}) > 1


def test_predict_of_a_dataset_of_audio_reads_an_audio_file(audio_set: Path) -> None:
    data = avdata.open(audio_set, "train")
    model = snnergy.build("nano", num_classes=len(data.labels), fusion="audio").eval()
    model.dataset = DatasetFacts.of(data.info)
    sample = data[0]
    file = audio_set.with_name("raw") / sample.metadata["sources"]["audio"]["path"]
    read = model.dataset.read_file(file)
    assert read.frames is None
    assert torch.equal(read.mel, sample.mel)
    assert set(snnergy.predict(model, file, device="cpu")[0].probabilities) == set(data.labels)


def test_predict_refuses_files_without_media(network: snnergy.SNNergy, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(AvdataError, match=r"Cannot use .*notes\.mp4: "):
        snnergy.predict(network, tmp_path / "notes.mp4", device="cpu")
    with pytest.raises(AvdataError, match=r"not found: .*absent\.mp4"):
        snnergy.predict(network, tmp_path / "absent.mp4", device="cpu")
    with pytest.raises(AvdataError, match="No trained network at"):
        snnergy.predict(tmp_path / "nothing", tmp_path / "absent.mp4")


def test_predict_command_shows_labels_of_a_stored_network(
    network: snnergy.SNNergy, tiny_set: Path, synthetic_mock: Path, tmp_path: Path
) -> None:
    network.save_pretrained(tmp_path / "stored")
    sample = avdata.open(tiny_set, "test")[0]
    file = synthetic_mock / sample.metadata["sources"]["video"]["path"]
    words = ["predict", str(tmp_path / "stored"), str(file), "--device", "cpu"]
    shown = CliRunner().invoke(app, [*words, "--top", "1"], catch_exceptions=False)
    found = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    label, share = next(iter(found[0]["probabilities"].items()))
    assert f"{label}" in shown.output
    assert f"{share:.4f}" in shown.output


def test_predict_names_a_missing_file_before_it_predicts(network: snnergy.SNNergy, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()  # not a video: decoding it would raise another error
    sources = [tmp_path / "clip.mp4", tmp_path / "clpi.mp4", tmp_path / "gone.mp4"]
    with pytest.raises(AvdataError, match=r"not found: .*clpi\.mp4 and 1 more\.") as raised:
        snnergy.predict(network, sources, device="cpu")
    assert raised.value.hint == f"Did you mean {tmp_path / 'clip.mp4'}?"
    with pytest.raises(AvdataError, match="not found") as raised:
        snnergy.predict(network, "elsewhere/gone.mp4", device="cpu")
    assert raised.value.hint == "Name media files, folders of prepared datasets, or URLs"
