"""Train on two workers with Ray Train: python ray_train.py DATASET."""

import sys
import tempfile
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch

import avdata


def train_worker(config):
    train = avdata.open(config["dataset"], "train", shuffle=True)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(train[0].mel.numel(), len(train.labels)))
    model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader, seen = train.loader(batch_size=8), 0
    for loaded in loader:
        batch = loaded.to(ray.train.torch.get_device())
        losses = torch.nn.functional.cross_entropy(model(batch.mel), batch.label, reduction="none")
        optimizer.zero_grad()
        ((losses * batch.weight).sum() / batch.weight.sum().clamp(min=1)).backward()
        optimizer.step()
        seen += int(batch.weight.sum())
    total = torch.tensor(seen)
    torch.distributed.all_reduce(total)
    assert int(total) == train.num_samples  # over all workers
    ray.train.report({"samples": seen, "total": int(total)})


if __name__ == "__main__":
    dataset = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as storage:
        ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"dataset": dataset},
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=storage),
        ).fit()
    print("each sample was read once")
    ray.shutdown()
