"""Predictions of a trained network for media files and for samples of a prepared dataset."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import avdata
from avdata.errors import AvdataError
from avdata.streaming.batch import AVBatch
from snnergy.data import mel_transform, open_any_split, to_device
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.training.distributed import Device, select_device
from snnergy.training.pretrained import load_trained

BATCH_SIZE = 16

MAX_NAMES = 10_000
"""Names in a folder that are compared with that of a missing file."""


@dataclass(frozen=True)
class Prediction:
    """Prediction for one file or sample.

    Attributes:
        source: path of the file, or key of the sample.
        probabilities: by label, in descending order.
    """

    source: str
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The label with the highest probability."""
        return next(iter(self.probabilities))


def predict(
    network: SNNergy | str | Path,
    inputs: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    device: Device = "auto",
) -> list[Prediction]:
    """Return the predictions of a trained network.

        snnergy.predict("runs/cremad", "clip.mp4")[0].probabilities

    Files are prepared with the settings of the network's training set. The datasets' own labels are not
    needed.

    Args:
        network: a network, or as for `snnergy.training.pretrained.load_trained`: folder of a run, checkpoint,
            folder of `save_pretrained`, or `user/repo` on the Hub.
        inputs: media files, prepared datasets, or URLs of datasets; one or several.
        split: split of the datasets; None: the first of test, val and train that exists.
        device: `auto` uses a GPU if there is one.

    Returns:
        One prediction per file, and one per sample of a dataset, in the order of `inputs`.

    Raises:
        AvdataError: a file does not exist or cannot be decoded, or a dataset does not match the network.
    """
    trained = network if isinstance(network, SNNergy) else load_trained(network)
    facts = trained.dataset
    if facts is None:
        msg = "The network has no record of the dataset that it was trained on."
        raise AvdataError(msg, hint="Use a network that `snnergy train` wrote")
    trained = trained.to(select_device(device)).eval()
    found: list[Prediction] = []
    sources = [inputs] if isinstance(inputs, str | Path) else inputs
    _check_existence(sources)
    for source in sources:
        if _is_dataset(source):
            found += _predict_dataset(trained, facts, source, split)
        else:
            batch = avdata.collate([facts.read_file(source)])
            found += _predict_batch(trained, facts, trained.preprocess(batch), [str(source)])
    return found


def _is_dataset(source: str | Path) -> bool:
    return "://" in str(source) or Path(source).is_dir()


def _check_existence(sources: Sequence[str | Path]) -> None:
    """Raise before the first prediction if a file does not exist."""
    missing = [Path(source) for source in sources if not (_is_dataset(source) or Path(source).is_file())]
    if not missing:
        return
    folder = missing[0].parent
    names = [str(path) for path in sorted(folder.iterdir())[:MAX_NAMES]] if folder.is_dir() else []
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    similar = difflib.get_close_matches(str(missing[0]), names, n=1)
    msg = f"Media file or dataset not found: {missing[0]}{others}."
    hint = (
        f"Did you mean {similar[0]}?"
        if similar
        else "Name media files, folders of prepared datasets, or URLs"
    )
    raise AvdataError(msg, hint=hint)


def _predict_dataset(
    network: SNNergy, facts: DatasetFacts, source: str | Path, split: str | None
) -> Iterator[Prediction]:
    splits = (split,) if split else ("test", "val", "train")
    data = open_any_split(source, splits, rank=0, world_size=1)
    facts.check_settings(DatasetFacts.of(data.info), network.modalities)
    device = network.head.weight.device
    mel = mel_transform(data, device, facts)
    loader: Iterable[AVBatch] = data.loader(min(BATCH_SIZE, len(data)), num_workers=0)
    for batch in loader:
        predictions = _predict_batch(network, facts, to_device(batch, device, mel).arguments, batch.key)
        for prediction, weight in zip(predictions, batch.weight.tolist(), strict=True):
            if weight > 0:
                yield prediction


@torch.no_grad()
def _predict_batch(
    network: SNNergy,
    facts: DatasetFacts,
    arguments: Mapping[str, torch.Tensor | None],
    sources: Sequence[str],
) -> list[Prediction]:
    shares = network(**arguments).double().softmax(1).tolist()
    return [
        Prediction(
            source, dict(sorted(zip(facts.labels, row, strict=True), key=lambda item: item[1], reverse=True))
        )
        for source, row in zip(sources, shares, strict=True)
    ]
