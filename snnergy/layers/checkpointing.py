"""Activation checkpointing of modules with batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]


def call(module: nn.Module, *args: Any) -> Any:
    """Return `module(*args)`."""
    return module(*args)


def checkpointed(module: nn.Module, *args: Any) -> Any:
    """Return `module(*args)`, with its activations recomputed in the backward pass."""
    return checkpoint(
        module, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _frozen_statistics(module))
    )


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return all batch norms of a model."""
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged: the first forward pass has already updated them."""
    norms = batch_norms(model)
    before = [(norm, norm.momentum) for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for (norm, momentum), count in zip(before, counts, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
