"""A set prepared straight into object storage: `--out s3://bucket/set`, or any other URL of fsspec.

A shard is written on the disk of the node that makes it, and proven there; only then does it go up, under
its final name at once where the store commits uploads whole (S3, GCS, Azure), and otherwise under a name of
its own that is then moved. Its journal entry follows. So a run that is killed leaves no shard that is not
whole, and any node can go on: the journal lies in the store, below `.avdata/`, until the set is finished.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.pipeline.journal import STATE_DIR, Journal
from avdata.shards.format import METADATA_FILES
from avdata.storage.atomic import atomic_write
from avdata.storage.backends import find_backend
from avdata.storage.remote import local_mirror_dir, open_filesystem, relative_sizes, storage_errors


class ObjectStoreOutput:
    """A set's place in object storage."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with storage_errors(self.url):
            self._files, self._base = open_filesystem(self.url)
            # Listings that another node's shards are missing from would make finished work look lost.
            self._files.invalidate_cache()
        # A run's own: another run's must not be cleared away under it.
        self.scratch = local_mirror_dir(self.url, "out") / f"{socket.gethostname()}-{os.getpid()}"

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def upload(self, part: Path, name: str) -> None:
        """Bring a file up: readers see it whole or not at all."""
        with storage_errors(f"{self.url}/{name}"):
            if find_backend(self.url).atomic_uploads:
                self._files.put_file(str(part), self._path(name))
                return
            held = self._path(f"{STATE_DIR}/parts/{part.name}")
            for path in (held, self._path(name)):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(part), held)
            self._files.mv(held, self._path(name))

    def fetch(self, name: str, path: Path) -> bool:
        """Bring a small file here; False when there is none."""
        with storage_errors(f"{self.url}/{name}"):
            try:
                data = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return False
        atomic_write(path, data)
        return True

    def file_sizes(self) -> dict[str, int]:
        """Bytes of every file of the set, by its path below the set."""
        with storage_errors(self.url):
            self._files.invalidate_cache()
            found = self._files.find(self._base, detail=True)
        return relative_sizes(self._base, found)

    def fetch_state(self) -> None:
        """Bring here what a run must know of the set: dataset.json, the plan and the journal's entries."""
        for left in self.scratch.parent.glob(f"{socket.gethostname()}-*"):
            # Shards that a killed run had not brought up yet are large.
            host, _, process = left.name.rpartition("-")
            if left == self.scratch or (host == socket.gethostname() and not _is_alive(int(process))):
                shutil.rmtree(left, ignore_errors=True)  # another run may be removing it too
        self.scratch.mkdir(parents=True)
        there = self.file_sizes()
        state = [name for name in there if name.startswith((f"{STATE_DIR}/done/", f"{STATE_DIR}/plan.json"))]
        for name in state + (["dataset.json"] if "dataset.json" in there else []):
            self.fetch(name, self.scratch / name)
        strange = [name for name in there if not name.startswith(f"{STATE_DIR}/")]
        if strange and not state and "dataset.json" not in there:
            msg = f"{self.url} holds files that are not a prepared set ({strange[0]})"
            raise AvdataError(msg, hint="choose an empty or new place for --out")

    def remove(self) -> None:
        """Remove the set's own files, dataset.json first."""
        ours = [
            name
            for name in self.file_sizes()
            if name in METADATA_FILES or name.startswith(("train/", "val/", "test/", f"{STATE_DIR}/"))
        ]
        for name in sorted(ours, key=lambda name: name != "dataset.json"):
            self._remove(name)

    def _remove(self, name: str) -> None:
        with storage_errors(f"{self.url}/{name}"):
            self._files.rm_file(self._path(name))

    def finalize(self) -> None:
        """Bring up what `finalize` wrote, dataset.json last, and remove all that is not the set's."""
        for name in METADATA_FILES:
            self.upload(self.scratch / name, name)
        splits = json.loads((self.scratch / "dataset.json").read_bytes())["splits"].values()
        known = {shard["path"] for split in splits for shard in split["shards"]}
        for name in self.file_sizes():
            # A shard of another plan that was broken off is none of this set.
            if name.startswith(f"{STATE_DIR}/") or (name.endswith(".tar") and name not in known):
                self._remove(name)
        shutil.rmtree(self.scratch)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


class ObjectStoreJournal(Journal):
    """The journal of a set that is prepared into a store; its folder here is scratch space."""

    def __init__(self, root: Path, store: ObjectStoreOutput) -> None:
        super().__init__(root)
        self._store = store
        self._sizes: dict[str, int] | None = None

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Record what is being prepared, here and in the store."""
        super().write_plan(plan)
        self._store.upload(self.folder / "plan.json", f"{STATE_DIR}/plan.json")

    def commit(self, shard: str, entry: dict[str, Any]) -> None:
        """Bring a finished part up under its final name, then its entry, and free the disk."""
        part, path = self.partial_path(shard), self._entry(shard)
        if part.exists():
            self._store.upload(part, shard)
            part.unlink()
        atomic_write(path, json.dumps({**entry, "part": ""}).encode())
        self._store.upload(path, path.relative_to(self.root).as_posix())

    def load_entry(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """The entry of a shard made by the same job and whole in the store."""
        if self._sizes is None:
            self._sizes = self._store.file_sizes()
        try:
            entry: dict[str, Any] = json.loads(self._entry(shard).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        whole = self._sizes.get(shard, 0) == entry["bytes"]
        return entry if entry["fingerprint"] == fingerprint and whole else None

    def close(self) -> None:
        """Nothing: `ObjectStoreOutput.finalize` removes the journal when the set is whole."""


def open_journal(root: Path, store: str | None) -> Journal:
    """The journal of a set in a folder, or of one in a store."""
    return Journal(root) if store is None else ObjectStoreJournal(root, ObjectStoreOutput(store))


def file_sizes(root: Path, store: ObjectStoreOutput | None) -> Callable[[str], int | None]:
    """How large a file of the set is, by its path below the set; None when there is none."""
    if store is None:
        return lambda name: (root / name).stat().st_size if (root / name).is_file() else None
    return store.file_sizes().get
