"""Draw the spikes of a trained SNNergy for one sample: python spikes.py RUN DATASET [OUTPUT]."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import avdata
import snnergy
from snnergy.training.checkpoint import load_network

NEURONS = 48


def record(run, dataset):
    """Return the spikes [T, N] of each neuron layer for the first test sample, by name of the layer."""
    network, _ = load_network(Path(run) / "best.ckpt")
    batch = next(iter(avdata.open(dataset, "test").loader(batch_size=1)))
    spikes = {}

    def keep(name, neuron, values):  # values: [T, B, C, H, W]
        spikes[name] = values[:, 0].flatten(1)

    with torch.no_grad(), snnergy.record_spikes(network, keep):
        network(**network.preprocess(batch))
    return spikes


def main(run, dataset, output="spikes.png"):
    spikes = record(run, dataset)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    places = [(modality, stage) for modality in ("audio", "video") for stage in range(3)]
    for axis, (modality, stage) in zip(figure.subplots(2, 3).flat, places, strict=True):
        layer = spikes[f"encoders.{modality}.{stage}.embedding.main.1"]
        chosen = torch.linspace(0, layer.shape[1] - 1, NEURONS).round().long()
        axis.imshow(layer[:, chosen].T, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_title(f"{modality}, stage {stage + 1}: rate {layer.mean():.2f}", fontsize=9)
        axis.set_xticks(range(len(layer)), range(1, len(layer) + 1))
        axis.set_xlabel("time step")
        axis.set_ylabel(f"{NEURONS} of {layer.shape[1]:,} neurons")
    figure.savefig(output, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
