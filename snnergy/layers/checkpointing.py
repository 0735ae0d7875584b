"""Parts of a network that keep their input alone, and are computed again in the backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]


def call(part: nn.Module, *given: Any) -> Any:
    """What the part makes of what it is given."""
    return part(*given)


def checkpointed(part: nn.Module, *given: Any) -> Any:
    """The same; the part is computed a second time for its gradients, and keeps nothing till then."""
    return checkpoint(
        part, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), _norms_unchanged(part))
    )


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Its batch norms."""
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def _norms_unchanged(model: nn.Module) -> Iterator[None]:
    """Within it batch norms count nothing: what is computed again has been counted already."""
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
