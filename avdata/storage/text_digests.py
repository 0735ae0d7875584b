"""Comparison of millions of texts by digests, in bounded memory and 16 bytes of disk a text."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_BYTES = 16

_PART = 1 << 17
"""Digests of all texts that are compared at a time."""

_MEMORY_BYTES = 1 << 20
"""Size from which the digests of a collection are in a file."""

_BLOCK_BYTES = 1 << 20

Digests = NDArray[np.bytes_]


def digest_texts(texts: Iterable[str]) -> Digests:
    """Return the digest of each text. Different texts have different digests, as with any 128-bit hash."""
    return np.frombuffer(_digest(texts), f"S{_BYTES}")


def _digest(texts: Iterable[str]) -> bytes:
    return b"".join(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_BYTES).digest() for text in texts
    )


class TextDigests:
    """Collection of the digests of texts, in a temporary file without a name if there are many.

    >>> digests = TextDigests()
    >>> digests.add(["a", "b"])
    >>> digests.add(["a"])
    >>> digests.count(), contains(digests.repeated(), digest_texts(["a", "b"]))
    (2, array([ True, False]))
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115  # closed with the object
        self._size = 0

    def add(self, texts: Iterable[str]) -> None:
        """Add texts."""
        self._size += self._file.write(_digest(texts))

    def __len__(self) -> int:
        return self._size // _BYTES

    def part(self, number: int, parts: int) -> Digests:
        """Return the digests of one of several parts, sorted. A text belongs to one part."""
        chosen = [np.empty(0, f"S{_BYTES}")]
        self._file.seek(0)
        while block := self._file.read(_BLOCK_BYTES):
            heads = np.frombuffer(block, "<u2")[:: _BYTES // 2]
            chosen.append(np.frombuffer(block, f"S{_BYTES}")[heads % parts == number])
        digests = np.concatenate(chosen)
        digests.sort()
        return digests

    def count(self) -> int:
        """Return the number of different texts."""
        return sum(len(_once(digests)) for (digests,) in _parts([self]))

    def repeated(self) -> Digests:
        """Return the digests of the texts that occur more than once, sorted."""
        found = [_once(digests[1:][digests[1:] == digests[:-1]]) for (digests,) in _parts([self])]
        return np.sort(np.concatenate(found))


def _parts(collections: Sequence[TextDigests]) -> Iterator[list[Digests]]:
    """Yield each part of some collections."""
    parts = min(1 + sum(map(len, collections)) // _PART, 1 << 16)
    return ([digests.part(number, parts) for digests in collections] for number in range(parts))


def _once(digests: Digests) -> Digests:
    return digests[np.append(True, digests[1:] != digests[:-1])] if len(digests) else digests


def contains(known: Digests, digests: Digests) -> NDArray[np.bool_]:
    """Return which of the digests are among the known ones, which are sorted."""
    if not len(known):
        return np.zeros(len(digests), np.bool_)
    positions = np.minimum(np.searchsorted(known, digests), len(known) - 1)
    found: NDArray[np.bool_] = known[positions] == digests
    return found


def shared_digests(collections: Sequence[TextDigests]) -> Digests:
    """Return the digests that are in more than one collection, sorted."""
    found = [np.empty(0, f"S{_BYTES}")]
    for part in _parts(collections):
        digests = np.sort(np.concatenate([np.empty(0, f"S{_BYTES}"), *map(_once, part)]))
        found.append(_once(digests[1:][digests[1:] == digests[:-1]]))
    return np.sort(np.concatenate(found))
