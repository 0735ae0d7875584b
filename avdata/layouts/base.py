"""What an export layout provides, and the export job that it works on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from avdata.config.overrides import Overrides
from avdata.errors import AvdataError, UsageError
from avdata.layouts.clip_media import ClipMedia
from avdata.shards.dataset_files import DatasetFiles
from avdata.shards.reader import read_index
from avdata.shards.sample import read_sample_bytes

NO_SETTINGS: Overrides = MappingProxyType({})

_KEY = re.compile(r"(?!__)[A-Za-z0-9_-]+")

_COLUMNS = ["key", "split", "shard", "offset", "nbytes", "label", "label_name"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        fbank_frames: rows of the Kaldi filterbank; None is the layout's default.
        merge_val: list the clips of the validation split in the train list too.
        media: kinds of files that the layout `folders` writes; None is jpg, and wav if there are waveforms.
    """

    fbank_frames: int | None = None
    merge_val: bool = False
    media: tuple[str, ...] | None = None


class Layout(Protocol):
    """A file layout.

    Attributes:
        readers: the code that reads it, for the README.
        preset: preset of a preparation that has what the layout requires.
        settings: settings of that preparation that differ from the preset.
    """

    readers: str
    preset: str
    settings: Overrides

    def check(self, job: ExportJob) -> None:
        """Raise UsageError if the dataset lacks what the layout requires."""
        ...

    def notes(self, job: ExportJob) -> list[str]:
        """Return sentences about the files, for the README."""
        ...

    def write(self, job: ExportJob) -> None:
        """Write all files but the README."""
        ...


Content = bytes | Mapping[str, bytes]
"""Bytes of a file, or of each file of a folder by name."""


@dataclass(frozen=True, slots=True)
class Unit:
    """File or folder of a clip that appears complete or not at all.

    Attributes:
        path: relative to the output folder.
        make: returns the content.
    """

    path: str
    make: Callable[[ClipMedia], Content]


@dataclass
class ExportJob:
    """Export of one dataset to one layout.

    Attributes:
        files: files of the dataset.
        name: name of the layout.
        layout: the layout.
        write: writes a file or folder below the output folder, atomically.
        has: whether an earlier run of the same export has written a path.
        advance: called after each sample.
    """

    files: DatasetFiles
    name: str
    layout: Layout
    options: ExportOptions
    output: Path
    write: Callable[[str, Content], None]
    has: Callable[[str], bool]
    advance: Callable[[], None]
    kept: int = field(default=0)

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """Content of dataset.json."""
        return self.files.info

    @cached_property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the index. Keys become file names, so they are checked."""
        rows: list[dict[str, Any]] = read_index(self.files.root, _COLUMNS, self.info).to_pylist()
        for row in rows:
            if not _KEY.fullmatch(row["key"]) or row["split"] not in self.info["splits"]:
                where = f"{self.files.name}/index.parquet"
                msg = f"Unsafe key or split in {where}: {row['key']!a} of {row['split']!a}."
                raise AvdataError(msg, hint=f"List all problems with: avdata verify {self.files.name}")
        return rows

    @property
    def steps(self) -> int:
        """Frames of a sample, T; 0 in a dataset of audio."""
        shape = self.info["shape"]["frames"]
        return int(shape[0]) if shape else 0

    @property
    def prepare_command(self) -> str:
        """Command that prepares this dataset for the layout."""
        words = ["avdata", "prepare", self.info["name"], "--preset", self.layout.preset]
        if self.info.get("split_by"):
            words += ["--split-by", str(self.info["split_by"])]
        for section, values in self.layout.settings.items():
            words += [part for key, value in values.items() for part in ("--set", f"{section}.{key}={value}")]
        return shlex.join([*words, "-o", f"out/{self.info['name']}-{self.name}"])

    def refuse(self, requirement: str, found: str) -> UsageError:
        """Return the error that states what the layout requires, what the dataset has, and the remedy."""
        msg = f"Layout {self.name} requires {requirement}, and {self.files.name} has {found}."
        return UsageError(msg, hint=f"Prepare the dataset with: {self.prepare_command}")

    def check_media(self, *, frames: int = 1, most: int | None = None, waveform: bool = True) -> None:
        """Check the number of frames of a sample, and that its waveform is stored."""
        if frames and not self.steps:
            msg = f"Layout {self.name} requires frames, and the dataset of audio {self.files.name} has none."
            raise UsageError(
                msg, hint="Read the dataset with avdata.open, or export it to the layout folders."
            )
        found = f"{self.steps} frame{'s' * (self.steps != 1)}"
        requirement = None
        if waveform and not self.info["config"]["audio"]["flac"]:
            requirement, found = "waveforms", "none (audio.flac=false)"
        elif self.steps < frames:
            requirement = f"at least {frames} frame{'s' * (frames > 1)} of a clip"
        elif most is not None and self.steps > most:
            requirement = f"at most {most} frames of a clip"
        if requirement:
            raise self.refuse(requirement, found)

    def media(self, row: Mapping[str, Any]) -> ClipMedia:
        """Read the media of a sample."""
        rate = int(self.info["config"]["audio"]["sample_rate"])
        return ClipMedia.read(read_sample_bytes(self.files, row), self.info["shape"], rate)

    def listed(self, split: str) -> Iterator[Mapping[str, Any]]:
        """Return the rows of a split's list; with `merge_val`, that of train has those of val too."""
        splits = {split, "val"} if self.options.merge_val and split == "train" else {split}
        return (row for row in self.rows if row["split"] in splits)

    def split_names(self) -> list[str]:
        """Return the splits of the dataset, and train and test in any case: readers open both lists."""
        return [name for name in ("train", "val", "test") if name != "val" or name in self.info["splits"]]

    def write_units(self, units: Callable[[Mapping[str, Any]], Iterable[Unit]]) -> None:
        """Write the files of every clip that an earlier run has not written."""
        for row in self.rows:
            missing = [unit for unit in units(row) if not self.has(unit.path)]
            if missing:
                media = self.media(row)
                for unit in missing:
                    self.write(unit.path, unit.make(media))
            else:
                self.kept += 1
            self.advance()


def folder_name(label: str) -> str:
    """Return a label as the name of a folder.

    >>> folder_name("dog barking/howling")
    'dog barking_howling'
    """
    name = re.sub(r"[\x00-\x1f/\\:]", "_", label)
    return name if name.strip(". ") else f"_{name}"
