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
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.pipeline.journal import STATE_DIR, Journal
from avdata.pipeline.output_dir import check_output_dir, remove_dataset_files
from avdata.shards.format import METADATA_FILES
from avdata.storage.atomic import atomic_write
from avdata.storage.backends import find_backend
from avdata.storage.remote import local_mirror_dir, open_filesystem, relative_sizes, storage_errors


class ObjectStoreOutput:
    """Object storage that a dataset is prepared into; see `output.Output`.

    Args:
        url: of the dataset.
        root: local scratch folder of the run; None takes a new one of this process.
    """

    def __init__(self, url: str, root: Path | None = None) -> None:
        self.url = url.rstrip("/")
        # A run's own: another run's must not be cleared away under it.
        self.root = root or local_mirror_dir(self.url, "out") / f"{socket.gethostname()}-{os.getpid()}"
        self.journal = Journal(self.root)
        self._sizes: dict[str, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the client, which a worker opens itself."""
        return ObjectStoreOutput, (self.url, self.root)

    @property
    def location(self) -> str:
        """URL of the dataset."""
        return self.url

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        with storage_errors(self.url):
            files, base = open_filesystem(self.url)
            # Listings that another node's shards are missing from would make finished work look lost.
            files.invalidate_cache()
        return files, base

    @property
    def _files(self) -> Any:
        return self._filesystem[0]

    @property
    def _base(self) -> str:
        return self._filesystem[1]

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def check(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Fetch the state of the dataset, and raise AvdataError unless a preparation may use the URL."""
        self.fetch_state()
        check_output_dir(self.root, identity, overwrite=overwrite)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the scratch folder for one run."""
        return self.journal.lock()

    def write_plan(self, identity: Mapping[str, Any]) -> None:
        """Record what is being prepared, locally and in the store."""
        self.journal.write_plan(identity)
        self.upload(self.journal.folder / "plan.json", f"{STATE_DIR}/plan.json")

    def partial_path(self, shard: str) -> Path:
        """Return the local path of a shard that this process is writing."""
        return self.journal.partial_path(shard)

    def commit(self, shard: str, entry: Mapping[str, Any]) -> None:
        """Upload a finished shard under its final name, then its entry, and remove the local copy."""
        part, path = self.partial_path(shard), self.journal.entry_path(shard)
        if part.exists():
            self.upload(part, shard)
            part.unlink()
        atomic_write(path, json.dumps({**entry, "part": ""}).encode())
        self.upload(path, path.relative_to(self.root).as_posix())

    def load_entry(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """Return the entry of a shard of the same job that is complete in the store, or None."""
        if self._sizes is None:
            self._sizes = self.file_sizes()
        entry = self.journal.read_entry(shard, fingerprint)
        is_complete = entry is not None and self._sizes.get(shard, 0) == entry["bytes"]
        return entry if is_complete else None

    def remove_stale_shards(self, name: str, keep: Collection[str]) -> None:
        """Do nothing: `finalize` removes the shards that dataset.json does not list."""

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
        for left in self.root.parent.glob(f"{socket.gethostname()}-*"):
            # Shards that a killed run had not brought up yet are large.
            host, _, process = left.name.rpartition("-")
            if left == self.root or (host == socket.gethostname() and not _is_alive(int(process))):
                shutil.rmtree(left, ignore_errors=True)  # another run may be removing it too
        self.root.mkdir(parents=True)
        there = self.file_sizes()
        state = [name for name in there if name.startswith((f"{STATE_DIR}/done/", f"{STATE_DIR}/plan.json"))]
        for name in state + (["dataset.json"] if "dataset.json" in there else []):
            self.fetch(name, self.root / name)
        strange = [name for name in there if not name.startswith(f"{STATE_DIR}/")]
        if strange and not state and "dataset.json" not in there:
            msg = f"{self.url} holds files that are not a prepared set ({strange[0]})"
            raise AvdataError(msg, hint="choose an empty or new place for --out")

    def remove(self) -> None:
        """Remove the set's own files, dataset.json first."""
        remove_dataset_files(self.root)
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
            self.upload(self.root / name, name)
        splits = json.loads((self.root / "dataset.json").read_bytes())["splits"].values()
        known = {shard["path"] for split in splits for shard in split["shards"]}
        for name in self.file_sizes():
            # A shard of another plan that was broken off is none of this set.
            if name.startswith(f"{STATE_DIR}/") or (name.endswith(".tar") and name not in known):
                self._remove(name)
        shutil.rmtree(self.root)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
