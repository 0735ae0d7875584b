"""Local output folder. A preparation changes nothing in a folder that holds something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from avdata.config.overrides import diff_settings
from avdata.errors import AvdataError
from avdata.pipeline.journal import STATE_DIR, Journal
from avdata.shards.format import METADATA_FILES
from avdata.shards.reader import read_info
from avdata.storage.atomic import remove_stale_parts, write_errors
from avdata.storage.paths import check_no_symlinks


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

    def check_writable(self) -> None:
        """Raise DiskError unless the folder, or the one in which it will be created, is writable."""
        folder = self.root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with write_errors(self.root), TemporaryFile(dir=folder):
            pass

    def lock(self) -> AbstractContextManager[None]:
        """Lock the folder for one run."""
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
        """Remove what killed runs left: shards of another plan, and partial files."""
        state = self.journal.folder
        shutil.rmtree(state / "parts", ignore_errors=True)
        for folder in (state, state / "done"):
            remove_stale_parts(folder)
        for file in METADATA_FILES:
            remove_stale_parts(self.root, file)
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
    """Check that a folder is new, holds an unfinished run of the same preparation, or the finished dataset.

    Args:
        root: the folder, which may be missing.
        identity: `name` and `version` of the recipe, and the dumped `config`.
        overwrite: allow a prepared dataset with other settings, but no other files.

    Raises:
        AvdataError: the folder holds something else, or a symbolic link where it is written.
    """
    if not root.exists():
        return
    if not root.is_dir():
        msg = f"Output is a file, not a folder: {root}."
        raise AvdataError(msg, hint="Use --output with a folder.")
    state = (path.relative_to(root).as_posix() for path in (root / STATE_DIR).rglob("*"))
    check_no_symlinks(root, ("train", "val", "test", STATE_DIR, *state))
    existing = _describe_contents(root, overwrite=overwrite)
    if existing is None or overwrite:
        return
    hint = "Use another --output, or use --overwrite to replace the dataset."
    if existing["name"] != identity["name"]:
        msg = f"Dataset mismatch in {root}: it holds {existing['name']}, requested {identity['name']}."
        raise AvdataError(msg, hint=hint)
    if existing["version"] != identity["version"]:
        msg = (
            f"Recipe version mismatch in {root}: prepared with version {existing['version']},"
            f" requested {identity['version']}."
        )
        raise AvdataError(msg, hint=hint)
    differences = diff_settings(existing["config"], identity["config"])
    if differences:
        listed = ", ".join(f"{name} is {old}, requested {new}" for name, old, new in differences[:3])
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        msg = f"Config mismatch in {root}: {listed}{more}."
        if len(differences) <= 3:
            settings = " ".join(f"--set {name}={json.dumps(old)}" for name, old, _ in differences)
            hint = f"Use {settings}, use another --output, or use --overwrite to replace the dataset."
        raise AvdataError(msg, hint=hint)


def _describe_contents(root: Path, *, overwrite: bool) -> dict[str, Any] | None:
    if overwrite and any((root / name).is_file() for name in ("dataset.json", f"{STATE_DIR}/plan.json")):
        return None  # also if it is damaged
    if (root / "dataset.json").is_file():
        info = read_info(root)
        return {**info["recipe"], "config": info["config"]}
    plan = Journal(root).read_plan()
    if plan is None and any(entry.name != STATE_DIR for entry in root.iterdir()):
        msg = f"Output folder is not empty and holds no prepared dataset: {root}."
        raise AvdataError(msg, hint="Use --output with an empty or new folder.")
    return plan


def remove_dataset_files(root: Path) -> None:
    """Remove a dataset's own files, dataset.json first, so that the rest does not look finished."""
    for name in (*reversed(METADATA_FILES), "report.html"):
        (root / name).unlink(missing_ok=True)
    for folder in ("train", "val", "test", f"{STATE_DIR}/done", f"{STATE_DIR}/parts"):
        if (root / folder).is_dir():
            shutil.rmtree(root / folder)
