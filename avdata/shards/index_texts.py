"""Repeated keys and shared groups of an index, in memory that does not grow with its rows.

Digests of the texts are compared, and the texts of one part at a time: the index is read once for each part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avdata.shards.reader import index_batches
from avdata.storage.text_digests import Digests, TextDigests, contains, digest_texts, shared_digests

if TYPE_CHECKING:
    import pyarrow as pa

_PART_ROWS = 1 << 20


def repeated_keys(root: Path, rows: int) -> dict[str, int]:
    """Return the keys that occur more than once, with their number, in the order of the index.

    Args:
        root: folder of the dataset.
        rows: number of rows of the index.
    """
    repeated = []
    for part, parts in _parts(rows):
        keys = TextDigests(part, parts)
        for batch in index_batches(root, ["key"]):
            keys.add(batch["key"].to_pylist())
        repeated.append(keys.repeated())
    known = np.sort(np.concatenate(repeated))
    return dict(Counter(batch["key"][row].as_py() for batch, row in _matches(root, ["key"], known)))


def count_groups(root: Path, rows: int) -> tuple[Counter[str], dict[str, set[str]]]:
    """Return the number of groups of each split, and the groups in several splits, each with its splits.

    Args:
        root: folder of the dataset.
        rows: number of rows of the index.
    """
    counts: Counter[str] = Counter()
    shared = []
    for part, parts in _parts(rows):
        by_split: dict[str, TextDigests] = {}
        for batch in index_batches(root, ["group", "split"]):
            groups, splits = np.array(batch["group"].to_pylist(), object), batch["split"].dictionary_encode()
            for number, split in enumerate(splits.dictionary.to_pylist()):
                own = groups[splits.indices.to_numpy() == number]
                by_split.setdefault(split, TextDigests(part, parts)).add(own)
        unique = {split: digests.unique() for split, digests in by_split.items()}
        counts.update({split: len(digests) for split, digests in unique.items()})
        shared.append(shared_digests(list(unique.values())))
    owners: dict[str, set[str]] = {}
    for batch, row in _matches(root, ["group", "split"], np.sort(np.concatenate(shared))):
        owners.setdefault(batch["group"][row].as_py(), set()).add(batch["split"][row].as_py())
    return counts, owners


def _parts(rows: int) -> Iterator[tuple[int, int]]:
    parts = 1 + rows // _PART_ROWS
    return ((part, parts) for part in range(parts))


def _matches(root: Path, columns: list[str], known: Digests) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield the rows whose first column has one of the digests."""
    if not len(known):
        return
    for batch in index_batches(root, columns):
        is_known = contains(known, digest_texts(batch[columns[0]].to_pylist()))
        yield from ((batch, row) for row in np.flatnonzero(is_known).tolist())
