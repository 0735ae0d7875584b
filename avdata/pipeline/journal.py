"""Journal of a preparation: lock, plan, and one entry per finished shard. A killed run resumes from it.

During a preparation, `OUT/.avdata/` holds `lock`, `plan.json`, `parts/` (partial shards) and `done/` (one
entry per finished shard). The order of writes: the partial shard and fsync, the entry and fsync, the rename
of the shard to its final name. A shard under its final name is therefore complete, and a partial shard with
an entry only needs the rename. The folder is removed when the dataset is finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.storage.atomic import atomic_rename, atomic_write
from avdata.storage.locks import lock_folder

STATE_DIR = ".avdata"


def pack(content: Mapping[str, Any]) -> bytes:
    """Return a file of the journal: the SHA-256 of the second line, and the content as JSON on that line."""
    text = json.dumps(dict(content), allow_nan=False).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def _unpack(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of the journal; None if it is missing, damaged or of an older version."""
    try:
        sha256, _, text = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(text).hexdigest().encode() != sha256:
        return None
    content: dict[str, Any] = json.loads(text)
    return content


class Journal:
    """Folder `.avdata` of a dataset that is being prepared."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / STATE_DIR

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for one run. The lock ends with the process.

        Raises:
            AvdataError: another run holds the lock.
        """
        conflict = AvdataError(
            f"Another run is preparing {self.root}.", hint="Wait for it to end, or use another --output."
        )
        with lock_folder(self.folder, conflict):
            yield

    def read_plan(self) -> dict[str, Any] | None:
        """Return the recorded plan, or None."""
        path = self.folder / "plan.json"
        if not path.is_file():
            return None
        plan = _unpack(path)
        if plan is None:
            msg = f"{path} is damaged."
            raise AvdataError(msg, hint="Use --overwrite to prepare the dataset again.")
        return plan

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Record what is being prepared, before the first shard."""
        atomic_write(self.folder / "plan.json", pack(plan))

    def partial_path(self, shard: str) -> Path:
        """Return the path where this process writes a shard until it is complete."""
        # On a shared disk, processes of two machines may have the same id.
        return self.folder / "parts" / f"{Path(shard).name}.{socket.gethostname()}.{os.getpid()}"

    def entry_path(self, shard: str) -> Path:
        """Return the path of a shard's entry."""
        return self.folder / "done" / (Path(shard).name + ".json")

    def commit(self, shard: str, entry: Mapping[str, Any]) -> None:
        """Write the entry of a shard whose partial file is synced, then rename the file."""
        part = self.partial_path(shard)
        atomic_write(self.entry_path(shard), pack({**entry, "part": part.name}))
        if part.exists():
            atomic_rename(part, self.root / shard)

    def read_entry(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """Return the entry of a shard if the same job made it, else None."""
        entry = _unpack(self.entry_path(shard))
        return entry if entry is not None and entry["fingerprint"] == fingerprint else None

    def load_entry(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """Return the entry of a shard if the same job made it and it is complete, else None."""
        entry = self.read_entry(shard, fingerprint)
        if entry is None:
            return None
        part, final = self.folder / "parts" / Path(entry["part"]).name, self.root / shard
        if part.exists():
            atomic_rename(part, final)
        size_bytes = final.stat().st_size if final.is_file() else 0
        return entry if size_bytes == entry["bytes"] else None

    def close(self) -> None:
        """Remove the folder: the dataset is finished."""
        shutil.rmtree(self.folder)
