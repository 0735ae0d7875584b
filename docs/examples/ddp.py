"""Train a small audio-visual classifier with DistributedDataParallel.

python ddp.py DATASET                                   # one process
torchrun --nproc-per-node 8 ddp.py DATASET              # eight GPUs of one machine
"""

import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import avdata


class Classifier(nn.Module):
    """Late fusion of a spectrogram and a frame encoder."""

    def __init__(self, sample, labels):
        super().__init__()
        self.audio, self.video = self._encoder(sample.mel.shape[1]), self._encoder(sample.frames.shape[1])
        self.head = nn.Linear(64, labels)

    @staticmethod
    def _encoder(channels):
        layers = [nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, mel, frames):  # mel [B, T, 1, F, L], frames [B, T, C, H, W]
        batch, steps = mel.shape[:2]
        audio = self.audio(mel.flatten(0, 1)).view(batch, steps, -1).mean(1)
        video = self.video(frames.flatten(0, 1).float() / 255).view(batch, steps, -1).mean(1)
        return self.head(torch.cat([audio, video], 1))


def main(dataset, epochs=2, batch_size=8):
    distributed = torch.distributed.is_torchelastic_launched()
    cuda = torch.cuda.is_available()
    if distributed:
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    rank = torch.distributed.get_rank() if distributed else 0
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")

    train = avdata.open(dataset, "train", shuffle=True, seed=0)
    torch.manual_seed(0)
    model = Classifier(train[0], len(train.labels)).to(device)
    if distributed:
        model = DistributedDataParallel(model, device_ids=[device] if cuda else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        total = torch.zeros(2, device=device)
        for loaded in train.loader(batch_size, num_workers=2):  # the samples of this rank
            batch = loaded.to(device)
            losses = nn.functional.cross_entropy(
                model(batch.mel, batch.frames), batch.label, reduction="none"
            )
            loss = (losses * batch.weight).sum() / batch.weight.sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += torch.stack([(losses.detach() * batch.weight).sum(), batch.weight.sum()])
        if distributed:
            torch.distributed.all_reduce(total)
        if rank == 0:
            print(f"epoch {epoch}: loss {total[0] / total[1]:.3f} over {int(total[1])} samples")
    if distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
