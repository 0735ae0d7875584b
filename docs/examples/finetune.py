"""Fine-tune a trained SNNergy on another dataset: python finetune.py RUN DATASET.

The encoders and fusions keep their weights; the head is new, for the labels of the dataset.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import avdata
from snnergy.training.checkpoint import load_network


def main(run, dataset, epochs=2):
    train = avdata.open(dataset, "train", shuffle=True, seed=0)
    network, _ = load_network(Path(run) / "best.ckpt")
    network.head = nn.Linear(network.head.in_features, len(train.labels))
    head = list(network.head.parameters())
    body = [weights for name, weights in network.named_parameters() if not name.startswith("head.")]
    optimizer = torch.optim.AdamW([{"params": head, "lr": 1e-3}, {"params": body, "lr": 1e-4}])
    network.train()
    for epoch in range(epochs):
        losses = []
        for batch in train.loader(batch_size=8):
            logits = network(**network.preprocess(batch))
            loss = (nn.functional.cross_entropy(logits, batch.label, reduction="none") * batch.weight).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
