"""Torch `DataLoader` over the batches of an `AVLoader`, for frameworks that accept no other class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch.utils.data import DataLoader

from avdata.streaming.batch import AVBatch


class Resumable(Protocol):
    """Batches with a state: `AVLoader`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position."""
        ...


class BatchDataLoader(DataLoader[AVBatch]):
    """Torch `DataLoader` whose dataset is a stream of complete batches; `AVLoader.as_dataloader` creates it.

    `accelerator.prepare` returns it unchanged, because each process already reads its own part of the
    batches, and `accelerator.save_state` saves its state. Lightning's Fabric moves its batches to the device.
    """

    # accelerate reads both attributes of objects that it has prepared: do not divide it again; has a state.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    def __init__(self, batches: Any) -> None:
        super().__init__(batches, batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader."""
        batches: Resumable = self.dataset  # type: ignore[assignment]
        return batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state of the loader."""
        batches: Resumable = self.dataset  # type: ignore[assignment]
        batches.load_state_dict(state)
