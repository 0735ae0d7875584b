"""Lightning data module over the splits of a prepared dataset."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from avdata.errors import UsageError, redact_url
from avdata.streaming.dataset import AVDataset
from avdata.streaming.loader import AVLoader
from avdata.streaming.opening import open_dataset
from avdata.streaming.transforms import BatchTransform


class AVDataModule(LightningDataModule):
    """Lightning data module that streams train, val and test of a prepared dataset.

        data = avdata.AVDataModule("out/cremad", batch_size=32)
        lightning.Trainer(use_distributed_sampler=False).fit(model, datamodule=data)

    Batches are `AVBatch`. A checkpoint inside an epoch resumes with the next batch. `setup` opens the splits,
    after Lightning has initialized the ranks.

    Args:
        dataset: Folder or URL of a prepared dataset; see `avdata.open`.
        batch_size: Samples per batch and rank.
        shuffle: Shuffle the train split with a new order each epoch.
        num_workers: Number of threads that assemble batches.
        drop_last: Drop the last incomplete batch of the train split.
        pin_memory: Copy batches to page-locked memory if CUDA is available.
        collate_fn: Function from the list of samples to a batch, of all splits; see `AVDataset.loader`.
        batch_transform: Function `(batch, generator) -> batch` of the train split only, such as mixup.
        train_options: Options of `avdata.open` for the train split only, such as `weights` or `filter`.
        options: Options of `avdata.open` for all splits, such as `seed`, `normalize`, `waveform` or `cache`.
    """

    def __init__(
        self,
        dataset: str | Path,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        num_workers: int = 2,
        drop_last: bool = False,
        pin_memory: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_transform: BatchTransform | None = None,
        train_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size = dataset, batch_size
        self.splits: dict[str, AVDataset] = {}
        self._train_options = {"shuffle": shuffle, **(train_options or {})}
        self._options = options
        self._drop_last, self._batch_transform = drop_last, batch_transform
        self._loader_options: dict[str, Any] = {
            "num_workers": num_workers, "pin_memory": pin_memory, "collate_fn": collate_fn,
        }  # fmt: skip

    def setup(self, stage: str) -> None:
        """Open the splits that a stage needs: fit, validate, test or predict."""
        if stage == "fit":
            train = self._open("train")
            if "val" in train.info["splits"]:
                self._open("val")
        else:
            self._open("val" if stage == "validate" else "test")

    def _open(self, split: str) -> AVDataset:
        if split not in self.splits:
            options = self._options | (self._train_options if split == "train" else {})
            self.splits[split] = open_dataset(self.dataset, split, **options)
        return self.splits[split]

    def train_dataloader(self) -> AVLoader:
        """Return the loader of the train split.

        With `Trainer(overfit_batches=...)`, it reads in the order of the index.
        """
        return self._loader("train", drop_last=self._drop_last, batch_transform=self._batch_transform)

    def val_dataloader(self) -> AVLoader | list[AVLoader]:
        """Return the loader of the val split, in the order of the index; an empty list if there is none."""
        if "train" in self.splits and "val" not in self.splits:
            return []
        return self._loader("val")

    def test_dataloader(self) -> AVLoader:
        """Return the loader of the test split, in the order of the index."""
        return self._loader("test")

    def predict_dataloader(self) -> AVLoader:
        """Return the loader of the test split, in the order of the index."""
        return self._loader("test")

    def _loader(self, split: str, **options: Any) -> AVLoader:
        if split not in self.splits:
            msg = f"Split {split} of {redact_url(self.dataset)} is not open."
            raise UsageError(msg, hint="Call setup('fit'), setup('validate') or setup('test') first")
        dataset = self.splits[split]
        if dataset.order.shuffle and getattr(self.trainer, "overfit_batches", False):
            # As Lightning does for torch's DataLoader: it must train with the same batches in each epoch.
            rank_zero_warn("overfit_batches disables the shuffling of the train split.")
            dataset = copy.copy(dataset)
            dataset.order = replace(dataset.order, shuffle=False)
        return dataset.loader(self.batch_size, **self._loader_options, **options)

    def __repr__(self) -> str:
        return f"AVDataModule({redact_url(self.dataset)!r}, batch_size={self.batch_size})"
