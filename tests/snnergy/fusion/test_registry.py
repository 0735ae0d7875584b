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
    assert tuple(snnergy.build("nano", fusion=name).encoders) == FUSIONS[name].modalities


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
