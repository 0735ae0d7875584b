"""Functions of the user that a stream applies to samples and batches, each call with its own generator.

A generator depends on seed, epoch and key only: results do not depend on workers, ranks or resumes.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from avdata.errors import AvdataError, UnavailableError, UsageError
from avdata.streaming.batch import AVSample, as_dict
from avdata.streaming.protocols import StreamSource

_log = logging.getLogger(__name__)

SampleTransform = Callable[[AVSample, torch.Generator], Any]

BatchTransform = Callable[[Any, torch.Generator], Any]


def check_transform(name: str, function: object) -> None:
    """Raise an error unless a function can be called with a sample or batch and a generator.

    Raises:
        UsageError: It cannot.
    """
    hint = f"Define it as def {name}(value, generator), and draw random numbers from the torch.Generator"
    if not callable(function):
        msg = f"Invalid {name}={function!r}: must be a function."
        raise UsageError(msg, hint=hint)
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        msg = f"Invalid {name}={function!r}: must accept two arguments ({error})."
        raise UsageError(msg, hint=hint) from error
    except ValueError:
        pass  # some functions of extension modules have no signature


def keyed_generator(seed: int, epoch: int, keys: Sequence[str], occurrence: int = 0) -> torch.Generator:
    """Return a generator that depends on the arguments only.

    >>> torch.equal(*(torch.rand(2, generator=keyed_generator(0, 3, ["a"])) for _ in range(2)))
    True

    Args:
        seed: Seed of the dataset.
        epoch: Number of the epoch.
        keys: Key of the sample, or keys of the samples of a batch.
        occurrence: How often the epoch contained the sample before, such as with `weights`.
    """
    text = "/".join([str(seed), str(epoch), str(occurrence), *keys])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def apply_transform(function: Callable[..., Any], value: Any, generator: torch.Generator, where: str) -> Any:
    """Call a function of the user; a note on its exceptions names the sample or batch."""
    try:
        return function(value, generator)
    except Exception as error:
        error.add_note(f"raised by the transform of {where}")
        raise


def occurrences(order: np.ndarray) -> np.ndarray:
    """Return for each position of an order how often its sample occurred before, int64 [positions].

    >>> occurrences(np.array([4, 1, 4, 4, 0])).tolist()
    [0, 0, 1, 2, 0]
    """
    counts = np.zeros(len(order), np.int64)
    if len(order) == 0 or np.bincount(order).max() == 1:
        return counts
    ranking = np.argsort(order, kind="stable")
    is_first = np.diff(order[ranking], prepend=-1) != 0
    positions = np.arange(len(order))
    counts[ranking] = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    return counts


def log_skipped(error: AvdataError) -> None:
    """Log the error of a sample that is skipped."""
    _log.warning("skipped: %s", error.message)


def read_or_substitute(
    source: StreamSource, number: int, report: Callable[[AvdataError], None]
) -> tuple[int, AVSample]:
    """Return a sample and its number; for an unreadable one with on_error="skip", the next readable one.

    A substitute has weight 0 and the error in `metadata["skipped"]`.

    Args:
        source: Dataset.
        number: Number of the sample.
        report: Receives the error of a sample that is skipped.

    Raises:
        AvdataError: The sample is unreadable, and on_error="raise" or no other sample is readable.
    """
    try:
        return number, source.sample(number)
    except AvdataError as error:
        if source.on_error == "raise" or isinstance(error, UnavailableError):
            raise
        skipped = error
    report(skipped)
    for other in (*range(number + 1, source.num_rows), *range(number)):
        try:
            sample = source.sample(other)
        except UnavailableError:
            raise
        except AvdataError:
            continue
        return other, replace(sample, weight=0.0, metadata={**sample.metadata, "skipped": skipped.message})
    raise skipped


class SampleBatches:
    """Batches that a collate function assembles from single samples.

    Args:
        source: Dataset.
        collate_fn: Function from a list of samples to a batch (default: torch's, which returns an `AVBatch`).
    """

    def __init__(self, source: StreamSource, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self._source = source
        self._collate = collate_fn

    def batch(
        self,
        numbers: np.ndarray,
        weight: np.ndarray,
        occurrence: np.ndarray,
        epoch: int,
        report: Callable[[AvdataError], None],
    ) -> Any:
        """Return a batch.

        Args:
            numbers: Sample numbers.
            weight: Weight of each sample; 0 marks padding.
            occurrence: How often the epoch contained each sample before.
            epoch: Number of the epoch.
            report: Receives the errors of samples that are skipped.
        """
        source, items = self._source, []
        for number, factor, before in zip(
            numbers.tolist(), weight.tolist(), occurrence.tolist(), strict=True
        ):
            read, sample = read_or_substitute(source, number, report)
            sample = replace(sample, weight=sample.weight * factor)
            items.append(source.transformed(read, sample, epoch=epoch, occurrence=before))
        if self._collate is None:
            return default_collate(items)
        return self._collate([as_dict(item) for item in items] if source.as_dict else items)
