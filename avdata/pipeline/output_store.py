"""Output in object storage: `--output s3://bucket/dataset`, or any other URL that fsspec opens.

Each node writes a shard to its own disk and then uploads it. Stores with atomic uploads (S3, GCS, Azure) take
it under its final name, others under a temporary name that is then moved. The journal entry follows, below
`.avdata/` in the store. A killed run therefore leaves complete shards only, and any node can resume it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.pipeline.journal import STATE_DIR, Journal, pack
from avdata.pipeline.output_dir import check_output_dir, remove_dataset_files
from avdata.shards.format import METADATA_FILES
from avdata.storage.atomic import atomic_write, is_alive
from avdata.storage.backends import find_backend
from avdata.storage.remote import local_mirror_dir, open_filesystem, storage_errors
from avdata.storage.remote_files import list_files


class ObjectStoreOutput:
    """Object storage that a dataset is prepared into; see `output.Output`.

    Args:
        url: of the dataset.
        root: local scratch folder of the run; None takes a new one of this process.
    """

    def __init__(self, url: str, root: Path | None = None) -> None:
        self.url = url.rstrip("/")
        # Each run has its own folder, so that no other run removes its files.
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
            # A cached listing may lack the shards of other nodes.
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
        with self._removed_on_error():
            self.fetch_state()
            check_output_dir(self.root, identity, overwrite=overwrite)

    def check_writable(self) -> None:
        """Write an object and remove it, to find missing permissions before the source is read.

        Other stores than those with atomic uploads would keep the folders of the object.
        """
        if not find_backend(self.url).atomic_uploads:
            return
        name = f"{STATE_DIR}/check-{socket.gethostname()}-{os.getpid()}"
        with self._removed_on_error():
            with storage_errors(self.url):
                self._files.pipe_file(self._path(name), b"avdata")
            self._remove(name)

    @contextmanager
    def _removed_on_error(self) -> Iterator[None]:
        """Remove the scratch folder if the output cannot be used."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.root, ignore_errors=True)
            raise

    def lock(self) -> AbstractContextManager[None]:
        """Lock the scratch folder for one run."""
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
        atomic_write(path, pack({**entry, "part": ""}))
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
        """Upload a file atomically."""
        with storage_errors(f"{self.url}/{name}"):
            if find_backend(self.url).atomic_uploads:
                self._files.put_file(str(part), self._path(name))
                return
            temporary = self._path(f"{STATE_DIR}/parts/{part.name}")
            for path in (temporary, self._path(name)):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(part), temporary)
            self._files.mv(temporary, self._path(name))

    def fetch(self, name: str, path: Path) -> bool:
        """Download a small file; return False if it is missing."""
        with storage_errors(f"{self.url}/{name}"):
            try:
                data = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return False
        atomic_write(path, data)
        return True

    def file_sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, by its path below the URL."""
        return {name: file.bytes for name, file in list_files(self.url).items()}

    def fetch_state(self) -> None:
        """Download dataset.json, the plan and the journal's entries into the scratch folder.

        Remove the scratch folders of dead processes of this host first: unpublished shards are large.
        """
        for folder in self.root.parent.glob(f"{socket.gethostname()}-*"):
            host, _, process = folder.name.rpartition("-")
            if folder == self.root or (host == socket.gethostname() and not is_alive(int(process))):
                shutil.rmtree(folder, ignore_errors=True)  # another run may be removing it too
        self.root.mkdir(parents=True)
        names = self.file_sizes()
        state = [name for name in names if name.startswith((f"{STATE_DIR}/done/", f"{STATE_DIR}/plan.json"))]
        for name in state + (["dataset.json"] if "dataset.json" in names else []):
            self.fetch(name, self.root / name)
        other = [name for name in names if not name.startswith(f"{STATE_DIR}/")]
        if other and not state and "dataset.json" not in names:
            msg = f"Output is not empty and holds no prepared dataset: {self.url} ({other[0]})."
            raise AvdataError(msg, hint="Use --output with an empty or new URL.")

    def remove(self) -> None:
        """Remove the dataset's own files, dataset.json first."""
        remove_dataset_files(self.root)
        names = [
            name
            for name in self.file_sizes()
            if name in METADATA_FILES or name.startswith(("train/", "val/", "test/", f"{STATE_DIR}/"))
        ]
        for name in sorted(names, key=lambda name: name != "dataset.json"):
            self._remove(name)

    def _remove(self, name: str) -> None:
        with storage_errors(f"{self.url}/{name}"):
            self._files.rm_file(self._path(name))

    def finalize(self) -> None:
        """Upload the metadata files, dataset.json last, and remove the journal and unlisted shards."""
        for name in METADATA_FILES:
            self.upload(self.root / name, name)
        splits = json.loads((self.root / "dataset.json").read_bytes())["splits"].values()
        listed = {shard["path"] for split in splits for shard in split["shards"]}
        for name in self.file_sizes():
            # An interrupted run with another plan may have left shards.
            is_shard = name.startswith(("train/", "val/", "test/")) and name.endswith(".tar")
            if name.startswith(f"{STATE_DIR}/") or (is_shard and name not in listed):
                self._remove(name)
        shutil.rmtree(self.root)
