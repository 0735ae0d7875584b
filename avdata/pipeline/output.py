"""Output of a preparation: one interface for a local folder and for object storage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from avdata.errors import AvdataError
from avdata.pipeline.output_dir import LocalOutput
from avdata.pipeline.output_store import ObjectStoreOutput
from avdata.shards.reader import read_info
from avdata.storage.backends import check_has_folders
from avdata.storage.remote import is_url


class Output(Protocol):
    """Place that a dataset is prepared into. Instances are pickled into the workers."""

    @property
    def location(self) -> Path | str:
        """Folder or URL of the dataset."""

    @property
    def root(self) -> Path:
        """Local folder of the metadata files: the dataset's own folder, or scratch space."""

    def check(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Raise AvdataError unless the output is new, unfinished by the same run, or finished.

        Args:
            identity: `name` and `version` of the recipe, and the dumped `config`.
            overwrite: allow a prepared dataset with other settings.
        """

    def check_writable(self) -> None:
        """Raise AvdataError unless files can be written; leave nothing behind."""

    def lock(self) -> AbstractContextManager[None]:
        """Lock the output for one run."""

    def write_plan(self, identity: Mapping[str, Any]) -> None:
        """Record what is being prepared, before the first shard."""

    def partial_path(self, shard: str) -> Path:
        """Return the local path of a shard that this process is writing."""

    def commit(self, shard: str, entry: Mapping[str, Any]) -> None:
        """Publish a written and synced shard under its final name, with its journal entry."""

    def load_entry(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """Return the entry of a complete shard of the same job, or None."""

    def remove_stale_shards(self, name: str, keep: Collection[str]) -> None:
        """Remove the shards of the recipe `name` that another plan left, except those in `keep`."""

    def finalize(self) -> None:
        """Publish the metadata files below `root` and remove the journal."""

    def file_sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, by its path below the dataset."""

    def remove(self) -> None:
        """Remove the dataset's own files, dataset.json first."""


def open_output(output: Path | str) -> Output:
    """Return the output for a folder or a URL.

    Raises:
        UsageError: the URL is that of a web server.
    """
    if not is_url(output):
        return LocalOutput(Path(output))
    check_has_folders(str(output))
    return ObjectStoreOutput(str(output))


def read_finished(output: Output) -> dict[str, Any] | None:
    """Return dataset.json of a finished dataset, or None."""
    return read_info(output.root) if (output.root / "dataset.json").is_file() else None


def check_plan(output: Output, info: Mapping[str, Any], plan_hash: str) -> None:
    """Raise AvdataError if a finished dataset was prepared from another plan."""
    if info["plan"] != plan_hash:
        msg = f"Source files changed since {output.location} was prepared."
        raise AvdataError(msg, hint="Use another --output, or use --overwrite to replace the dataset.")


def check_complete(output: Output, info: Mapping[str, Any]) -> None:
    """Raise AvdataError if a shard of a finished dataset is missing or has another size."""
    sizes = output.file_sizes()
    for split in info["splits"].values():
        for shard in split["shards"]:
            if sizes.get(shard["path"]) != shard["bytes"]:
                msg = (
                    f"Shard missing or incomplete in the finished dataset {output.location}: {shard['path']}."
                )
                raise AvdataError(msg, hint="Use --overwrite to prepare the dataset again.")
