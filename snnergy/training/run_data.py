"""Datasets of a run on one process: the train split, and the other splits for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.streaming.dataset import AVDataset
from avdata.streaming.loader import AVLoader
from snnergy.data import mel_transform, open_split
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.training.config import TrainConfig
from snnergy.training.distributed import sync_batch_norm_stats
from snnergy.training.evaluation import evaluate_split, recalibrate_batch_norm
from snnergy.training.predictions import Predictions
from snnergy.training.setup import part_size
from snnergy.training.targets import has_step_targets

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class RunData:
    """Datasets of a run.

    Args:
        fabric: launched Fabric.
        where: folder or URL of the prepared dataset.
        config: settings.

    Attributes:
        train: the train split, in the order of training.
        per_step: the network classifies each step, not the clip.
        facts: what a network depends on in the dataset.
        mel: module on the device, from `mel_transform`; None: the mels of the loaders.
        part: number of samples that this process reads at once.
        epoch_steps: number of optimizer steps per epoch.
    """

    def __init__(self, fabric: Fabric, where: str | Path, config: TrainConfig) -> None:
        self._fabric, self._where, self._config = fabric, where, config
        self.train = self._open("train", shuffle=True)
        # A second dataset object, because recalibration always reads epoch 0.
        self._calibration = self._open("train", shuffle=True)
        self.per_step = has_step_targets(config, self.train.info)
        self.facts = DatasetFacts.of(self.train.info, per_step=self.per_step)
        self.mel = mel_transform(self.train, fabric.device)
        self.part = part_size(config, fabric.world_size, self.train)
        self.epoch_steps = -(-self.train.num_samples // config.batch_size)

    @property
    def splits(self) -> dict[str, Any]:
        """Splits of the dataset, by name."""
        splits: dict[str, Any] = self.train.info["splits"]
        return splits

    @property
    def workers(self) -> int:
        """Number of loader threads."""
        # On the CPU, loader threads would compete with torch's for the same cores.
        default = 0 if self._fabric.device.type == "cpu" else 4
        return default if self._config.workers is None else self._config.workers

    def _open(self, split: str, *, shuffle: bool = False) -> AVDataset:
        rank, world = (None, None) if self._fabric.world_size > 1 else (0, 1)
        return open_split(
            self._where, split, features=self._config.features, shuffle=shuffle, seed=self._config.seed,
            rank=rank, world_size=world,
        )  # fmt: skip

    def loader(self) -> AVLoader:
        """Return the loader of the train split."""
        on_gpu = self._fabric.device.type == "cuda"
        return self.train.loader(self.part, num_workers=self.workers, pin_memory=on_gpu)

    def recalibrate(self, network: SNNergy) -> None:
        """Recalibrate the batch norms of a network on the train split, over all processes."""
        recalibrate_batch_norm(network, self._calibration, self.part, self._fabric.device, self.mel)
        sync_batch_norm_stats(self._fabric, network)

    def measure(
        self,
        network: SNNergy,
        split: str,
        rates: dict[str, float] | None = None,
        predictions: Predictions | None = None,
    ) -> dict[str, Any]:
        """Return what `evaluate_split` measures of a network on a split, over all processes."""
        data, fabric = self._open(split), self._fabric
        part = min(self.part, -(-data.num_samples // fabric.world_size))
        loader = data.loader(part, num_workers=self.workers)
        return evaluate_split(
            network, loader, self.facts.labels, fabric.device, mel=self.mel,
            per_step=self.per_step, synchronize=fabric.world_size > 1, rates=rates,
            predictions=predictions,
        )  # fmt: skip
