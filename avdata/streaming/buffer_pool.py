"""Pool of reusable batch buffers.

Reuse avoids page faults, which cost as much as the copy into the buffer.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
import torch


class BufferPool:
    """Pool of arrays of one shape and dtype; an array is free if only the pool references it.

    A tensor from `torch.from_numpy`, and every view of it, references its array as long as it exists.

    >>> buffers = BufferPool((2, 3), np.float32, keep=4)
    >>> batch = buffers.tensor()
    >>> view = batch[0]
    >>> del batch
    >>> buffers.tensor().data_ptr() == view.data_ptr()
    False

    Args:
        shape: Shape of each array.
        dtype: Type of each array.
        keep: Maximum number of arrays that the pool keeps.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type, *, keep: int) -> None:
        self._shape, self._dtype, self._keep = shape, dtype, keep
        self._lock = threading.Lock()
        self._arrays: list[np.ndarray] = [np.empty(0, dtype)]
        # The reference count of a free array depends on the interpreter: measure it.
        self._free_count = self._references(0)
        self._arrays.clear()

    def _references(self, index: int) -> int:
        return sys.getrefcount(self._arrays[index])

    def array(self) -> np.ndarray:
        """Return a free array with undefined content."""
        with self._lock:
            for index in range(len(self._arrays)):
                if self._references(index) == self._free_count:
                    return self._arrays[index]
            # numpy requests huge pages from the kernel, torch does not.
            array: np.ndarray = np.empty(self._shape, self._dtype)
            self._arrays.append(array)
            if len(self._arrays) > self._keep:
                self._arrays.pop(0)
            return array

    def tensor(self) -> torch.Tensor:
        """Return a free array as a tensor."""
        return torch.from_numpy(self.array())
