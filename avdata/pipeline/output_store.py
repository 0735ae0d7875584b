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
from avdata.pipeline.journal import FOLDER, Journal
from avdata.storage.atomic import write_whole
from avdata.storage.remote import explained_store, filesystem_of, local_copy, sizes_below

COMMITTING = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Protocols whose uploads are visible whole or not at all, several parts or one."""

SMALL = ("index.parquet", "quarantine.parquet", "croissant.json", "README.md", "dataset.json")


class Store:
    """A set's place in object storage."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with explained_store(self.url):
            self._files, self._base = filesystem_of(self.url)
            # Listings that another node's shards are missing from would make finished work look lost.
            self._files.invalidate_cache()
        # A run's own: another run's must not be cleared away under it.
        self.scratch = local_copy(self.url, "out") / f"{socket.gethostname()}-{os.getpid()}"

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def put(self, part: Path, name: str) -> None:
        """Bring a file up: readers see it whole or not at all."""
        with explained_store(f"{self.url}/{name}"):
            if self.url.partition("://")[0] in COMMITTING:
                self._files.put_file(str(part), self._path(name))
                return
            held = self._path(f"{FOLDER}/parts/{part.name}")
            for path in (held, self._path(name)):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(part), held)
            self._files.mv(held, self._path(name))

    def fetch(self, name: str, path: Path) -> bool:
        """Bring a small file here; False when there is none."""
        with explained_store(f"{self.url}/{name}"):
            try:
                data = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return False
        write_whole(path, data)
        return True

    def sizes(self) -> dict[str, int]:
        """Bytes of every file of the set, by its path below the set."""
        with explained_store(self.url):
            self._files.invalidate_cache()
            found = self._files.find(self._base, detail=True)
        return sizes_below(self._base, found)

    def fetch_state(self) -> None:
        """Bring here what a run must know of the set: dataset.json, the plan and the journal's entries."""
        for left in self.scratch.parent.glob(f"{socket.gethostname()}-*"):
            # Shards that a killed run had not brought up yet are large.
            host, _, process = left.name.rpartition("-")
            if left == self.scratch or (host == socket.gethostname() and not _is_alive(int(process))):
                shutil.rmtree(left, ignore_errors=True)  # another run may be removing it too
        self.scratch.mkdir(parents=True)
        there = self.sizes()
        state = [name for name in there if name.startswith((f"{FOLDER}/done/", f"{FOLDER}/plan.json"))]
        for name in state + (["dataset.json"] if "dataset.json" in there else []):
            self.fetch(name, self.scratch / name)
        strange = [name for name in there if not name.startswith(f"{FOLDER}/")]
        if strange and not state and "dataset.json" not in there:
            msg = f"{self.url} holds files that are not a prepared set ({strange[0]})"
            raise AvdataError(msg, hint="choose an empty or new place for --out")

    def clear(self) -> None:
        """Remove the set's own files, dataset.json first."""
        ours = [
            name
            for name in self.sizes()
            if name in SMALL or name.startswith(("train/", "val/", "test/", f"{FOLDER}/"))
        ]
        for name in sorted(ours, key=lambda name: name != "dataset.json"):
            self._remove(name)

    def _remove(self, name: str) -> None:
        with explained_store(f"{self.url}/{name}"):
            self._files.rm_file(self._path(name))

    def finish(self) -> None:
        """Bring up what `finalize` wrote, dataset.json last, and remove all that is not the set's."""
        for name in SMALL:
            self.put(self.scratch / name, name)
        splits = json.loads((self.scratch / "dataset.json").read_bytes())["splits"].values()
        known = {shard["path"] for split in splits for shard in split["shards"]}
        for name in self.sizes():
            # A shard of another plan that was broken off is none of this set.
            if name.startswith(f"{FOLDER}/") or (name.endswith(".tar") and name not in known):
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


class StoreJournal(Journal):
    """The journal of a set that is prepared into a store; its folder here is scratch space."""

    def __init__(self, root: Path, store: Store) -> None:
        super().__init__(root)
        self._store = store
        self._sizes: dict[str, int] | None = None

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Record what is being prepared, here and in the store."""
        super().write_plan(plan)
        self._store.put(self.folder / "plan.json", f"{FOLDER}/plan.json")

    def commit(self, shard: str, entry: dict[str, Any]) -> None:
        """Bring a finished part up under its final name, then its entry, and free the disk."""
        part, path = self.part(shard), self._entry(shard)
        if part.exists():
            self._store.put(part, shard)
            part.unlink()
        write_whole(path, json.dumps({**entry, "part": ""}).encode())
        self._store.put(path, path.relative_to(self.root).as_posix())

    def recall(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """The entry of a shard made by the same job and whole in the store."""
        if self._sizes is None:
            self._sizes = self._store.sizes()
        try:
            entry: dict[str, Any] = json.loads(self._entry(shard).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        whole = self._sizes.get(shard, 0) == entry["bytes"]
        return entry if entry["fingerprint"] == fingerprint and whole else None

    def close(self) -> None:
        """Nothing: `Store.finish` removes the journal when the set is whole."""


def journal_of(root: Path, store: str | None) -> Journal:
    """The journal of a set in a folder, or of one in a store."""
    return Journal(root) if store is None else StoreJournal(root, Store(store))


def size_in(root: Path, store: Store | None) -> Callable[[str], int | None]:
    """How large a file of the set is, by its path below the set; None when there is none."""
    if store is None:
        return lambda name: (root / name).stat().st_size if (root / name).is_file() else None
    return store.sizes().get
