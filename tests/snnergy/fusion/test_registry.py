from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
import torch

import snnergy
from snnergy.fusion.registry import FUSIONS
from snnergy.models.config import ModelConfig


def test_registry_does_not_import_torch() -> None:
    code = "import sys, snnergy.fusion.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", FUSIONS)
def test_row_refers_to_a_class_and_to_model_settings(name: str) -> None:
    spec = FUSIONS[name]
    assert issubclass(spec.build, torch.nn.Module)
    assert {*spec.overrides, *spec.settings} <= {field.name for field in fields(ModelConfig)}
    assert (spec.overrides.get("fusion_stages") == ()) == (spec.stage != "each")


@pytest.mark.parametrize("name", FUSIONS)
def test_network_has_the_encoders_of_its_row(name: str) -> None:
    network, spec = snnergy.build("nano", fusion=name), FUSIONS[name]
    assert network.modalities == spec.modalities
    assert tuple(network.encoders) == (() if spec.stage == "input" else spec.modalities)


@pytest.mark.parametrize(
    "name", [name for name, spec in FUSIONS.items() if spec.causal and spec.stage == "each"]
)
def test_causal_fusion_ignores_later_steps(name: str) -> None:
    torch.manual_seed(0)
    model = snnergy.build("nano", num_classes=3, fusion=name).double()
    audio = torch.randn(3, 4, 1, 16, 16, dtype=torch.float64)
    video = torch.randn(3, 4, 3, 16, 16, dtype=torch.float64)
    snnergy.recalibrate(model, [(audio, video)])
    model.eval()
    with torch.no_grad():
        before = model(audio, video, return_aux=True)[1]["stages"][-1]
        audio[2:] += 3
        video[2:] -= 3
        after = model(audio, video, return_aux=True)[1]["stages"][-1]
    assert all(torch.equal(before[key][:2], after[key][:2]) for key in before)


@pytest.mark.parametrize(
    ("name", "twin"), [("cnn_concat", "concat"), ("cnn_audio", "audio"), ("cnn_video", "video")]
)
def test_artificial_network_has_the_weights_of_its_twin_and_no_state(name: str, twin: str) -> None:
    torch.manual_seed(0)
    model, spiking = (snnergy.build("nano", fusion=fusion, neuron="plif") for fusion in (name, twin))
    kinds = {type(part).__name__ for part in model.modules()}
    assert "SpikingNeuron" not in kinds
    assert {"ReLU", "Sigmoid"} <= kinds
    shapes = {key: weight.shape for key, weight in spiking.named_parameters() if not key.endswith("leak")}
    assert {key: weight.shape for key, weight in model.named_parameters()} == shapes
    audio, video = torch.randn(3, 4, 1, 16, 16), torch.randn(3, 4, 3, 16, 16)
    snnergy.recalibrate(model, [(audio, video)])
    model.eval()
    with torch.no_grad():
        steps = model(audio, video, return_aux=True)[1]["step_logits"]
        alone = torch.stack([model(audio[number], video[number]) for number in range(3)])
    assert torch.allclose(steps, alone, atol=1e-5)


def test_energy_of_an_artificial_network_is_that_of_multiplications() -> None:
    model = snnergy.build("nano", fusion="cnn_audio").eval()
    measured = snnergy.measure_energy(model, [(torch.randn(2, 3, 1, 32, 32), torch.randn(2, 3, 3, 16, 16))])
    assert measured.rates == {}
    assert not any(layer.spiking for layer in measured.layers)
    arithmetic = sum(layer.macs for layer in measured.layers) * 4.6e-9
    assert measured.millijoules() == pytest.approx(arithmetic + measured.attention * 0.9e-9)
    assert measured.attention < 0.02 * sum(layer.macs for layer in measured.layers)


def test_probe_reads_means_of_cells_of_the_window() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(8, 5, 1, 64, 16), torch.randn(8, 5, 3, 32, 16)
    model = snnergy.build("nano", fusion="probe")
    _, aux = model(audio, video, return_aux=True)
    window = audio.permute(1, 2, 3, 0, 4).reshape(5, 32, 2, 16, 8).mean((2, 4)).flatten(1)
    clip = video.permute(1, 2, 0, 3, 4).reshape(5, 3, 4, 2, 8, 4, 8, 2).mean((3, 5, 7)).flatten(1)
    expected = torch.cat([window, clip], 1)
    expected = (expected - expected.mean(0)) / expected.var(0, correction=0).add(1e-5).sqrt()
    assert torch.allclose(aux["features"], expected, atol=1e-4)
    assert aux["step_logits"].shape == (8, 5, 6)
    silent = model(audio, video, mask_a=torch.tensor([True, False, True, True, True]), return_aux=True)
    assert not silent[1]["features"][1, :512].any()
