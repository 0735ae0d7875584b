"""Comparison of millions of texts by digests, in 16 bytes a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_BYTES = 16

Digests = NDArray[np.bytes_]


def digest_texts(texts: Iterable[str]) -> Digests:
    """Return the digest of each text. Different texts have different digests, as with any 128-bit hash."""
    data = b"".join(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_BYTES).digest() for text in texts
    )
    return np.frombuffer(data, f"S{_BYTES}")


class TextDigests:
    """Collection of the digests of texts.

    >>> digests = TextDigests()
    >>> digests.add(["a", "b"])
    >>> digests.add(["a"])
    >>> digests.count(), contains(digests.repeated(), digest_texts(["a", "b"]))
    (2, array([ True, False]))

    Args:
        part: number of the part to collect, from 0; a text belongs to one part.
        parts: number of parts, at most 65,536.
    """

    def __init__(self, part: int = 0, parts: int = 1) -> None:
        self._data = bytearray()
        self._part, self._parts = part, parts

    def add(self, texts: Iterable[str]) -> None:
        """Add texts."""
        digests = digest_texts(texts)
        if self._parts > 1:
            heads = np.frombuffer(digests, "<u2")[:: _BYTES // 2]
            digests = digests[heads % self._parts == self._part]
        self._data += digests.tobytes()

    def _sorted(self) -> Digests:
        digests = np.frombuffer(self._data, f"S{_BYTES}")
        digests.sort()  # in place, in the memory of the collection
        return digests

    def unique(self) -> Digests:
        """Return each digest once, sorted."""
        return _once(self._sorted())

    def count(self) -> int:
        """Return the number of different texts."""
        digests = self._sorted()
        return int(np.count_nonzero(digests[1:] != digests[:-1])) + (len(digests) > 0)

    def repeated(self) -> Digests:
        """Return the digests of the texts that occur more than once, sorted."""
        digests = self._sorted()
        return _once(digests[1:][digests[1:] == digests[:-1]])


def _once(digests: Digests) -> Digests:
    return digests[np.append(True, digests[1:] != digests[:-1])] if len(digests) else digests


def contains(known: Digests, digests: Digests) -> NDArray[np.bool_]:
    """Return which of the digests are among the known ones, which are sorted."""
    if not len(known):
        return np.zeros(len(digests), np.bool_)
    positions = np.minimum(np.searchsorted(known, digests), len(known) - 1)
    found: NDArray[np.bool_] = known[positions] == digests
    return found


def shared_digests(collections: Sequence[Digests]) -> Digests:
    """Return the digests that are in more than one collection, sorted; each collection has a digest once."""
    digests = np.sort(np.concatenate([*collections, np.empty(0, f"S{_BYTES}")]))
    return _once(digests[1:][digests[1:] == digests[:-1]])
