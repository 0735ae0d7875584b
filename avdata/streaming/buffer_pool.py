"""Memory for batches, taken again once nobody holds it: fresh pages cost as much as the copy into them."""

from __future__ import annotations

import sys
import threading

import numpy as np
import torch


class BufferPool:
    """Arrays of one shape and type; one is free when only this class refers to it.

    A tensor that `torch.from_numpy` made, and every view of it, refers to its array as long as it lives.

    >>> buffers = BufferPool((2, 3), np.float32, keep=4)
    >>> held = buffers.tensor()
    >>> view = held[0]
    >>> del held
    >>> buffers.tensor().data_ptr() == view.data_ptr()
    False

    Args:
        shape: of an array.
        dtype: of an array.
        keep: how many are kept for another use.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type, *, keep: int) -> None:
        self._shape, self._dtype, self._keep = shape, dtype, keep
        self._lock = threading.Lock()
        self._kept: list[np.ndarray] = [np.empty(0, dtype)]
        # What an array that nobody else holds counts, which depends on the interpreter.
        self._idle = self._references(0)
        self._kept.clear()

    def _references(self, place: int) -> int:
        return sys.getrefcount(self._kept[place])

    def array(self) -> np.ndarray:
        """An array nobody else holds; what is in it is not defined."""
        with self._lock:
            for place in range(len(self._kept)):
                if self._references(place) == self._idle:
                    return self._kept[place]
            # numpy asks the kernel for huge pages, torch does not.
            made: np.ndarray = np.empty(self._shape, self._dtype)
            self._kept.append(made)
            if len(self._kept) > self._keep:
                self._kept.pop(0)
            return made

    def tensor(self) -> torch.Tensor:
        """The same as a tensor."""
        return torch.from_numpy(self.array())
