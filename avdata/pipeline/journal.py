"""What survives a kill: files that appear whole or not at all, a folder's lock, the entries of done shards.

While a set is being prepared, `OUT/.avdata/` holds `lock`, `plan.json`, `parts/` (shards being written) and
`done/` (one entry a finished shard). A shard's order of events is: part written and synced, entry written and
synced, part renamed to its final name. So a shard under its final name is always complete, and an entry whose
shard is still a part only needs the rename. The folder is removed when the set is finished.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.storage.atomic import atomic_rename, atomic_write
from avdata.storage.locks import lock_folder

STATE_DIR = ".avdata"


class Journal:
    """The `.avdata` folder of a set that is being prepared."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / STATE_DIR

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run; the lock ends with the process, however it ends.

        Raises:
            AvdataError: another run holds it.
        """
        conflict = AvdataError(
            f"another run is preparing {self.root} right now", hint="wait for it, or choose another --out"
        )
        with lock_folder(self.folder, conflict):
            yield

    def read_plan(self) -> dict[str, Any] | None:
        """What `write_plan` wrote, or None."""
        path = self.folder / "plan.json"
        if not path.is_file():
            return None
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return plan

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Record what is being prepared, before the first shard."""
        atomic_write(self.folder / "plan.json", json.dumps(plan).encode())

    def partial_path(self, shard: str) -> Path:
        """Where this process writes a shard before it is complete."""
        # On a shared disk, processes of two machines may have the same number.
        return self.folder / "parts" / f"{Path(shard).name}.{socket.gethostname()}.{os.getpid()}"

    def _entry(self, shard: str) -> Path:
        return self.folder / "done" / (Path(shard).name + ".json")

    def commit(self, shard: str, entry: dict[str, Any]) -> None:
        """Enter a shard whose part is written and synced, then give it its final name."""
        part = self.partial_path(shard)
        atomic_write(self._entry(shard), json.dumps({**entry, "part": part.name}).encode())
        if part.exists():
            atomic_rename(part, self.root / shard)

    def load_entry(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """The entry of a shard made by the same job and complete on disk; None when it must be made again."""
        try:
            entry: dict[str, Any] = json.loads(self._entry(shard).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if entry["fingerprint"] != fingerprint:
            return None
        part, final = self.folder / "parts" / entry["part"], self.root / shard
        if part.exists():
            atomic_rename(part, final)
        found = final.stat().st_size if final.is_file() else 0
        return entry if found == entry["bytes"] else None

    def close(self) -> None:
        """Remove the folder: the set is finished."""
        shutil.rmtree(self.folder)
