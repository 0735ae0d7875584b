"""Train and validate with Lightning: python lightning_trainer.py DATASET."""

import sys

import lightning
import torch
from torch import nn

import avdata


class Model(lightning.LightningModule):
    """Linear classifier of the spectrogram."""

    def __init__(self, features, labels):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(features, labels))

    def _loss(self, batch):
        losses = nn.functional.cross_entropy(self.net(batch.mel), batch.label, reduction="none")
        return (losses * batch.weight).sum() / batch.weight.sum().clamp(min=1)

    def training_step(self, batch, number):
        return self._loss(batch)

    def validation_step(self, batch, number):
        self.log("val_loss", self._loss(batch), batch_size=int(batch.weight.sum()), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(dataset):
    train = avdata.open(dataset, "train")
    model = Model(train[0].mel.numel(), len(train.labels))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="auto", devices="auto", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, avdata.AVDataModule(dataset, batch_size=8))
    print(f"val_loss {trainer.callback_metrics['val_loss']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
