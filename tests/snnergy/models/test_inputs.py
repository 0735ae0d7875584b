from __future__ import annotations

import copy
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

import avdata
import snnergy
from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import SpikingNeuron


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(batch: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(3, batch, 1, 16, 24), torch.randn(3, batch, 3, 24, 16)


@pytest.fixture(scope="module")
def batch(cremad_set: Path) -> avdata.AVBatch:
    return next(iter(avdata.open(cremad_set, "train").loader(2, num_workers=0)))


def test_preprocess_makes_arguments_of_forward(batch: avdata.AVBatch) -> None:
    model = snnergy.build("nano").eval()
    arguments = model.preprocess(batch)
    assert arguments["mask_a"] is arguments["mask_v"] is None
    assert batch.mel is not None
    assert batch.frames is not None
    assert torch.equal(arguments["audio"].transpose(0, 1), batch.mel)
    normalize = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )
    assert torch.allclose(arguments["video"].transpose(0, 1), normalize(batch.frames), atol=1e-5)
    assert model(**arguments).shape == (2, 6)


def test_preprocess_turns_presence_into_masks(batch: avdata.AVBatch) -> None:
    model = snnergy.build("nano")
    arguments = model.preprocess(replace(batch, present=torch.tensor([[True, False], [True, True]])))
    assert arguments["mask_a"] is None
    assert arguments["mask_v"].tolist() == [False, True]


def test_preprocess_refuses_batches_without_what_the_network_reads(batch: avdata.AVBatch) -> None:
    model = snnergy.build("nano")
    with pytest.raises(ValueError, match="no frames"):
        model.preprocess(replace(batch, frames=None))
    with pytest.raises(ValueError, match="uint8"):
        model.preprocess(replace(batch, frames=batch.frames.float()))
    listener = snnergy.build("nano", fusion="audio").eval()
    assert listener(**listener.preprocess(replace(batch, frames=None))).shape == (2, 6)


def test_forward_refuses_integers() -> None:
    audio, video = inputs()
    with pytest.raises(ValueError, match=r"uint8.*preprocess"):
        snnergy.build("nano")(audio, video.to(torch.uint8))


@pytest.mark.parametrize(
    "mask", [torch.tensor([1.0, 0.5, 0.0, 1.0]), torch.tensor([True]), torch.ones(4, 1, dtype=torch.bool)]
)
def test_forward_refuses_wrong_masks(mask: Tensor) -> None:
    model = snnergy.build("nano")
    with pytest.raises(ValueError, match=r"mask of video must be bool \[4\]"):
        model(*inputs(), mask_v=mask)


def test_evaluation_refuses_values_that_are_not_finite() -> None:
    model = snnergy.build("nano").eval()
    audio, video = inputs()
    video[1, 2, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"video has NaN or infinite values in the batch's samples 2\."):
        model(audio, video)
    with pytest.raises(ValueError, match="video has NaN"):
        model.step(audio[1], video[1], model.init_state())
    absent = torch.tensor([True, True, False, True])
    assert model(audio, video, mask_v=absent).isfinite().all()
    assert snnergy.build("nano", fusion="audio").eval()(audio, video).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"fusion": "cmci", "neuron": "plif"}, {"stage3": "ssa"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_network_of_half_precision_fires_as_in_float32(options: dict[str, Any], dtype: torch.dtype) -> None:
    model, given = snnergy.build("nano", **options), inputs(batch=8)
    snnergy.recalibrate(model, [given])
    model.eval()
    rates: list[dict[str, float]] = []
    for network in (model, copy.deepcopy(model).to(dtype)):
        seen: dict[str, float] = {}

        def record(name: str, neuron: SpikingNeuron, spikes: Tensor, seen: dict[str, float] = seen) -> None:
            assert ((spikes == 0) | (spikes == 1)).all()
            seen[name] = float(spikes.float().mean())

        with record_spikes(network, record), torch.no_grad():
            logits = network(*given)
        assert logits.dtype == network.head.weight.dtype
        assert logits.isfinite().all()
        rates.append(seen)
    # Rounding moves currents across thresholds in both directions.
    assert statistics.fmean(abs(rates[1][name] - rate) for name, rate in rates[0].items()) < 0.02
