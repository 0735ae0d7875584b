"""Repeated keys and shared groups of an index, in memory that does not grow with its rows.

Digests of the texts are compared, a part of them at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avdata.shards.reader import index_batches
from avdata.storage.text_digests import Digests, TextDigests, contains, digest_texts, shared_digests

if TYPE_CHECKING:
    import pyarrow as pa


def repeated_keys(root: Path) -> dict[str, int]:
    """Return the keys that occur more than once, with their number, in the order of the index."""
    keys = TextDigests()
    for batch in index_batches(root, ["key"]):
        keys.add(batch["key"].to_pylist())
    rows = _matches(root, ["key"], keys.repeated())
    return dict(Counter(batch["key"][row].as_py() for batch, row in rows))


def count_groups(root: Path) -> tuple[Counter[str], dict[str, set[str]]]:
    """Return the number of groups of each split, and the groups in several splits, each with its splits."""
    by_split: defaultdict[str, TextDigests] = defaultdict(TextDigests)
    for batch in index_batches(root, ["group", "split"]):
        groups, splits = np.array(batch["group"].to_pylist(), object), batch["split"].dictionary_encode()
        for number, split in enumerate(splits.dictionary.to_pylist()):
            own = groups[splits.indices.to_numpy() == number]
            by_split[split].add(own)
    counts = Counter({split: digests.count() for split, digests in by_split.items()})
    owners: dict[str, set[str]] = {}
    for batch, row in _matches(root, ["group", "split"], shared_digests(list(by_split.values()))):
        owners.setdefault(batch["group"][row].as_py(), set()).add(batch["split"][row].as_py())
    return counts, owners


def _matches(root: Path, columns: list[str], known: Digests) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield the rows whose first column has one of the digests."""
    if not len(known):
        return
    for batch in index_batches(root, columns):
        is_known = contains(known, digest_texts(batch[columns[0]].to_pylist()))
        yield from ((batch, row) for row in np.flatnonzero(is_known).tolist())
