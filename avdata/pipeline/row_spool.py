"""Rows of the finished shards in a temporary file, so that memory does not grow with the dataset."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class RowSpool:
    """Temporary file of the rows of the index, by shard. It has no name, so a killed run leaves nothing.

    Args:
        folder: existing folder on a disk with space for about 100 bytes a row.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with the object
        self._places: dict[str, tuple[int, int]] = {}

    def store(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Store the rows of a journal entry; return it with their number, `samples`, in their place."""
        data = zlib.compress(json.dumps(entry["rows"], allow_nan=False).encode(), 1)
        start = self._file.seek(0, 2)
        self._file.write(data)
        self._places[entry["shard"]] = (start, len(data))
        summary = {name: value for name, value in entry.items() if name != "rows"}
        return {**summary, "samples": len(entry["rows"])}

    def rows(self, shard: str) -> Sequence[dict[str, Any]]:
        """Return the rows of a shard, by offset."""
        start, size = self._places[shard]
        self._file.seek(start)
        rows: list[dict[str, Any]] = json.loads(zlib.decompress(self._file.read(size)))
        return rows
