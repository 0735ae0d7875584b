"""What an output folder holds, and whether a preparation may use it: nothing there is harmed unasked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdata.config.overrides import diff_settings
from avdata.errors import AvdataError
from avdata.pipeline.journal import STATE_DIR, Journal
from avdata.shards.format import METADATA_FILES
from avdata.shards.reader import read_info


@dataclass(frozen=True)
class LocalOutput:
    """Folder that a dataset is prepared into; see `output.Output`."""

    root: Path

    @property
    def location(self) -> Path:
        """Folder of the dataset."""
        return self.root

    @property
    def journal(self) -> Journal:
        """Journal of the dataset."""
        return Journal(self.root)

    def check(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Raise AvdataError unless a preparation may use the folder."""
        check_output_dir(self.root, identity, overwrite=overwrite)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for one run."""
        return self.journal.lock()

    def write_plan(self, identity: Mapping[str, Any]) -> None:
        """Record what is being prepared."""
        self.journal.write_plan(identity)

    def partial_path(self, shard: str) -> Path:
        """Return the path of a shard that this process is writing."""
        return self.journal.partial_path(shard)

    def commit(self, shard: str, entry: Mapping[str, Any]) -> None:
        """Write the journal entry, then give the shard its final name."""
        self.journal.commit(shard, entry)

    def load_entry(self, shard: str, fingerprint: str) -> dict[str, Any] | None:
        """Return the entry of a complete shard of the same job, or None."""
        return self.journal.load_entry(shard, fingerprint)

    def remove_stale_shards(self, name: str, keep: Collection[str]) -> None:
        """Remove the shards of an interrupted run with another plan."""
        for path in self.root.glob(f"*/{name}-*-of-*.tar"):
            if path.relative_to(self.root).as_posix() not in keep:
                path.unlink()

    def finalize(self) -> None:
        """Remove the journal."""
        self.journal.close()

    def file_sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, by its path below the folder."""
        files = [path for pattern in ("*", "*/*") for path in self.root.glob(pattern) if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files}

    def remove(self) -> None:
        """Remove the dataset's own files, dataset.json first."""
        remove_dataset_files(self.root)


def check_output_dir(root: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
    """See that a folder is new, holds an unfinished run of the same preparation, or the finished set.

    Args:
        root: the folder, which need not exist.
        identity: `name` and `version` of the recipe, and the dumped `config`.
        overwrite: a prepared set with other settings may be replaced; anything else may not.

    Raises:
        AvdataError: it holds something else.
    """
    if not root.exists():
        return
    if not root.is_dir():
        msg = f"the output {root} is a file"
        raise AvdataError(msg, hint="give a folder with --out")
    there = _describe_contents(root)
    if there is None or overwrite:
        return
    replace = "choose another --out, or --overwrite to replace it"
    if there["name"] != identity["name"]:
        msg = f"{root} holds {there['name']}, not {identity['name']}"
        raise AvdataError(msg, hint=replace)
    if there["version"] != identity["version"]:
        msg = f"{root} was prepared by version {there['version']} of the recipe, not {identity['version']}"
        raise AvdataError(msg, hint=replace)
    other = diff_settings(there["config"], identity["config"])
    if other:
        shown = ", ".join(f"{name}: {old} there, {new} now" for name, old, new in other[:3])
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        msg = f"{root} was prepared with other settings ({shown}{more})"
        given = " ".join(f"--set {name}={json.dumps(old)}" for name, old, _ in other)
        as_there = f", give {given}" if len(other) <= 3 else ""
        raise AvdataError(msg, hint=f"choose another --out{as_there}, or --overwrite to replace it")


def _describe_contents(root: Path) -> dict[str, Any] | None:
    if (root / "dataset.json").is_file():
        info = read_info(root)
        return {**info["recipe"], "config": info["config"]}
    plan = Journal(root).read_plan()
    if plan is None and any(entry.name != STATE_DIR for entry in root.iterdir()):
        msg = f"the output folder {root} holds files that are not a prepared set"
        raise AvdataError(msg, hint="choose an empty or new folder for --out")
    return plan


def remove_dataset_files(root: Path) -> None:
    """Remove a dataset's own files, dataset.json first, so that the rest does not look finished."""
    for name in (*reversed(METADATA_FILES), "report.html"):
        (root / name).unlink(missing_ok=True)
    for folder in ("train", "val", "test", f"{STATE_DIR}/done", f"{STATE_DIR}/parts"):
        if (root / folder).is_dir():
            shutil.rmtree(root / folder)
