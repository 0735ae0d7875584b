"""Export of a prepared dataset to the file layout of existing training code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from avdata.errors import AvdataError, UsageError, did_you_mean
from avdata.layouts import DEFAULT_LAYOUT, EXPORT_LAYOUTS
from avdata.layouts.base import Content, ExportJob, ExportOptions
from avdata.layouts.readme import render_readme
from avdata.progress import Progress
from avdata.shards.dataset_files import open_dataset_files
from avdata.storage.atomic import atomic_rename, atomic_write, fsync, open_partial, write_errors
from avdata.storage.locks import lock_folder
from avdata.storage.paths import check_no_symlinks, local_path

IDENTITY_FILE = ".avdata-export.json"
"""States what the files of a folder were made from. A run with the same content resumes it."""

LOCK_DIR = ".avdata-export"


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        output: the folder.
        layout: name of the layout.
        samples: number of samples in the folder.
        kept: samples of them that an earlier run had written.
    """

    output: Path
    layout: str
    samples: int
    kept: int


def export(
    dataset: str | Path,
    output: str | Path,
    layout: str = DEFAULT_LAYOUT,
    *,
    fbank_frames: int | None = None,
    merge_val: bool = False,
    media: tuple[str, ...] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ExportReport:
    """Export a prepared dataset to the file layout of existing training code. The same call resumes.

    Every file, and every folder of a clip, appears complete or not at all. One sample is decoded at a time.

    Args:
        dataset: folder or URL of the prepared dataset.
        output: folder to write.
        layout: one of `EXPORT_LAYOUTS`.
        fbank_frames: rows of the filterbanks of `balancemm` (default: 300) and `kinetics-sounds` (1024).
        merge_val: list the clips of the validation split in the train list too, as published lists do.
        media: kinds of files of the layout `folders`: jpg, wav, mp4.
        progress: called with ("export", done, total), in samples.

    Raises:
        UsageError: the layout is unknown, the dataset lacks what it requires, or the folder holds another
            export.
        AvdataError: the dataset cannot be read, the folder cannot be written, or another run writes it.
    """
    if layout not in EXPORT_LAYOUTS:
        msg = f"Unknown export layout {layout!r}."
        raise UsageError(msg, hint=did_you_mean(layout, list(EXPORT_LAYOUTS)))
    folder = ExportFolder(local_path(output))
    options = ExportOptions(fbank_frames, merge_val, media)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("export", done, len(job.rows))

    files = open_dataset_files(dataset, "index.parquet")
    job = ExportJob(
        files, layout, EXPORT_LAYOUTS[layout], options, folder.path, folder.write, folder.has, advance
    )
    job.layout.check(job)
    identity = {
        "layout": layout,
        "dataset": sha256((files.root / "dataset.json").read_bytes()).hexdigest(),
        "options": asdict(options),
        "name": job.info["name"],
        "config_hash": job.info["config_hash"],
    }
    with write_errors(folder.path), folder.lock():
        folder.open(json.dumps(identity, indent=1, sort_keys=True).encode())
        job.layout.write(job)
        folder.write("README.md", render_readme(job).encode())
        folder.close()
    return ExportReport(folder.path, layout, len(job.rows), job.kept)


def is_exported(
    output: str | Path,
    layout: str,
    name: str,
    config_hash: str,
    *,
    fbank_frames: int | None = None,
    merge_val: bool = False,
) -> bool:
    """Return whether a folder holds a finished export with these options.

    Args:
        output: the folder.
        layout: name of the layout.
        name: name of the dataset.
        config_hash: hash of the settings of its preparation.
        fbank_frames: as for `export`.
        merge_val: as for `export`.

    Raises:
        UsageError: it holds another export.
    """
    folder = local_path(output)
    expected = {
        "layout": layout,
        "name": name,
        "config_hash": config_hash,
        "options": asdict(ExportOptions(fbank_frames, merge_val)),
    }
    try:
        marker = json.loads((folder / IDENTITY_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    if not (isinstance(marker, dict) and expected.items() <= marker.items()):
        raise _other_export(folder)
    # The README is written last.
    return (folder / "README.md").is_file()


def _other_export(folder: Path) -> UsageError:
    msg = f"{folder} holds an export of another dataset, or with other options."
    return UsageError(msg, hint="Choose another folder, or delete this one.")


class ExportFolder:
    """Folder that receives an export, atomically, and recognizes the same export of an earlier run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = b""
        self._resumes = False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for one run, which removes the partial files of earlier ones.

        Raises:
            AvdataError: another run holds the lock, or the folder of the lock is a symbolic link.
        """
        check_no_symlinks(self.path, (LOCK_DIR,))
        conflict = AvdataError(
            f"Another run is exporting to {self.path}.", hint="Wait for it to end, or choose another folder."
        )
        with lock_folder(self.path / LOCK_DIR, conflict):
            try:
                yield
            finally:
                shutil.rmtree(self.path / LOCK_DIR, ignore_errors=True)

    def open(self, identity: bytes) -> None:
        """Create the folder, or continue the export that it holds.

        A folder with other files becomes an export only at its end, so that none of those files is taken for
        one of the export.

        Raises:
            UsageError: the folder holds another export.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        marker = self.path / IDENTITY_FILE
        self._identity = identity
        if marker.is_file():
            if marker.read_bytes() != identity:
                raise _other_export(self.path)
            self._resumes = True
            _remove_partial(self.path)
        elif all(path.name.startswith(".") for path in self.path.iterdir()):
            atomic_write(marker, identity)

    def close(self) -> None:
        """Mark the folder as this export."""
        if not (self.path / IDENTITY_FILE).is_file():
            atomic_write(self.path / IDENTITY_FILE, self._identity)

    def has(self, path: str) -> bool:
        """Return whether an earlier run of this export wrote a file or folder."""
        target = self.path / path
        return self._resumes and target.exists() and not target.is_symlink()

    def write(self, path: str, content: Content) -> None:
        """Write a file, or a folder of files; replace an existing one."""
        target = self.path / path
        if isinstance(content, bytes):
            atomic_write(target, content)
            return
        with write_errors(target):
            _write_folder(target, content)


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder under a temporary name, sync its files, and rename it."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        for name, data in files.items():
            with open_partial(part / name) as stream:
                stream.write(data)
                fsync(stream.fileno())
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        atomic_rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_partial(folder: Path) -> None:
    """Remove what a killed run has left."""
    for path in sorted(folder.rglob("*.part")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
