"""Rows and sums of the finished shards in a temporary file, so that memory does not grow with the dataset."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdata.shards.mel_sums import MelSums

_STORED = ("rows", "mel")


class RowSpool:
    """Temporary file of rows of the index and sums over mels, by shard.

    It has no name, so a killed run leaves nothing.

    Args:
        folder: existing folder on a disk with space for about 100 bytes a row.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with the object
        self._places: dict[str, tuple[int, int]] = {}

    def store(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Store the rows and sums of a journal entry; return it with `samples`, their number, instead."""
        stored = {name: entry[name] for name in _STORED}
        data = zlib.compress(json.dumps(stored, allow_nan=False).encode(), 1)
        start = self._file.seek(0, 2)
        self._file.write(data)
        self._places[entry["shard"]] = (start, len(data))
        summary = {name: value for name, value in entry.items() if name not in _STORED}
        return {**summary, "samples": len(entry["rows"])}

    def load(self, shard: str) -> tuple[list[dict[str, Any]], MelSums]:
        """Return the rows of a shard, by offset, and the sums over its mels."""
        start, size = self._places[shard]
        self._file.seek(start)
        stored = json.loads(zlib.decompress(self._file.read(size)))
        return stored["rows"], MelSums.from_json(stored["mel"])
