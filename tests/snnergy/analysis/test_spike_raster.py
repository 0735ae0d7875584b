from __future__ import annotations

import numpy as np
import torch

import snnergy
from snnergy.analysis.spike_raster import CELL, NEURONS, SILENCE, SPIKE, draw_raster, record_raster
from snnergy.layers.neurons import SpikingNeuron


def test_raster_has_the_spikes_of_the_first_sample_of_every_layer() -> None:
    torch.manual_seed(0)
    model = snnergy.build("nano", num_classes=3).eval()
    audio, video = torch.randn(3, 2, 1, 16, 16), torch.randn(3, 2, 3, 16, 16)
    layers = record_raster(model, audio, video)
    names = [name for name, part in model.named_modules() if isinstance(part, SpikingNeuron)]
    assert sorted(layers) == sorted(names)
    seen: dict[str, torch.Tensor] = {}
    with snnergy.record_spikes(model, lambda name, neuron, spikes: seen.update({name: spikes})):
        model(audio, video)
    first = "encoders.audio.0.embedding.embed.1"
    expected = seen[first][:, 0].flatten(1).numpy()
    assert layers[first].shape == (3, NEURONS)
    assert layers[first][:, 0].tolist() == (expected[:, 0] > 0).tolist()
    assert layers[first][:, -1].tolist() == (expected[:, -1] > 0).tolist()
    assert any(spikes.any() for spikes in layers.values())


def test_draw_raster_colors_a_cell_per_step_and_neuron() -> None:
    image = draw_raster({"a": np.array([[True, False], [False, False]]), "b": np.ones((2, NEURONS), bool)})
    assert image.shape == (NEURONS * CELL // 2, (2 + 1 + 2) * CELL, 3)
    assert tuple(image[0, 0]) == SPIKE
    assert tuple(image[0, CELL]) == SILENCE
    assert tuple(image[CELL // 2, 0]) == SILENCE
    assert tuple(image[-1, 0]) == (255, 255, 255)
    assert tuple(image[-1, -1]) == SPIKE
