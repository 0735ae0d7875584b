"""Places of the records of a file by their keys, in 16 bytes a record.

NumPy is imported with the first block: a download of few files needs none, and its import takes 0.1 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = 4096


class PlaceIndex:
    """Place of the last record of each key.

    Keys are compared by their hash, so the record must hold its key. The hashes are in sorted blocks, and two
    blocks of about the same size are merged: there are few blocks, and each key is moved a few times.

    >>> places = PlaceIndex()
    >>> places.add("a", 0)
    >>> places.add("a", 100)
    >>> places.find("a"), places.find("b")
    (100, None)
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._blocks: list[NDArray[np.int64]] = []  # [2, records]: sorted hashes, and their places

    def add(self, key: str, place: int) -> None:
        """Record the place of a key, which replaces an earlier one."""
        self._recent[hash(key)] = place
        if len(self._recent) < _BLOCK:
            return
        import numpy as np  # noqa: PLC0415

        block = np.array(sorted(self._recent.items())).T.copy()
        self._recent = {}
        while self._blocks and self._blocks[-1].shape[1] < 2 * block.shape[1]:
            block = _merge(self._blocks.pop(), block)
        self._blocks.append(block)

    def find(self, key: str) -> int | None:
        """Return the place of a key or, rarely, that of another key; None if the key is unknown."""
        code = hash(key)
        if code in self._recent:
            return self._recent[code]
        if not self._blocks:
            return None
        import numpy as np  # noqa: PLC0415

        for hashes, places in reversed(self._blocks):
            position = np.searchsorted(hashes, code)
            if position < len(hashes) and hashes[position] == code:
                return int(places[position])
        return None


def _merge(older: NDArray[np.int64], newer: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np  # noqa: PLC0415

    both = np.concatenate([older, newer], axis=1)
    both = both[:, np.argsort(both[0], kind="stable")]
    is_last = np.append(both[0, 1:] != both[0, :-1], True)
    return both[:, is_last]
