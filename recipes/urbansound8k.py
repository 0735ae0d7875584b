"""UrbanSound8K: 8,732 sounds of up to four seconds in 10 classes, from 1,297 recordings, in ten folds.

Salamon, Jacoby, Bello: A Dataset and Taxonomy for Urban Sound Research, ACM MM 2014.
https://zenodo.org/records/1203745

A clip is `foldN/STEM.wav`, as in the archive of Zenodo (`UrbanSound8K/audio/fold1` to `fold10`) and in
Kaggle's copy (`fold1` to `fold10`). The stem is `fsID-classID-occurrence-slice`. Samples have no frames. A
split that separates slices of one Freesound recording (fsID) leaks. The default is the dataset's own folds
with fold 10 as the test set. `random70` is the literature's share of 70 % without leaks, and `scmrl70` the
published rule of S-CMRL, which leaks.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avdata import Clip, Recipe, SourceError, UsageError
from avdata.config.overrides import Overrides
from avdata.errors import did_you_mean
from avdata.storage.paths import walk_files

log = logging.getLogger(__name__)

LABELS = (
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot",
    "jackhammer", "siren", "street_music",
)  # fmt: skip

STEM = re.compile(r"(\d+)-(\d)-(\d+)-(\d+)")

FOLDS = 10

FOLDER = re.compile(r"fold(10|[1-9])")

CSV = "UrbanSound8K.csv"

PARQUET_HINT = (
    "Write their audio to WAVs with the script of docs/datasets/urbansound8k.md, and use its output folder."
)


@dataclass(frozen=True, slots=True)
class Slice:
    """Audio slice: recording and label from its name, fold from its folder or UrbanSound8K.csv."""

    stem: str
    fs_id: str
    label: str
    fold: int | None = None


def parse_stem(stem: str, folds: Mapping[str, int] | None = None) -> Slice | None:
    """Return the slice of a stem, or None if the name is not one.

    >>> parse_stem("100032-3-0-0").label
    'dog_bark'
    """
    match = STEM.fullmatch(stem)
    if match is None:
        return None
    return Slice(stem, match[1], LABELS[int(match[2])], (folds or {}).get(stem))


def fold_split(fold: int, test: int) -> str:
    """Return the split of a fold when fold `test` is the test set and the next one validates."""
    return "test" if fold == test else "val" if fold == test % FOLDS + 1 else "train"


def random70_split(fs_id: str) -> str:
    """Return the split of a recording by a hash of its id: 60 % train, 10 % val, 30 % test."""
    share = int.from_bytes(hashlib.sha256(f"random70:{fs_id}".encode()).digest()[:4]) / 2**32
    return "train" if share < 0.6 else "val" if share < 0.7 else "test"


def scmrl70_splits(slices: Iterable[Slice]) -> dict[str, str]:
    """Return the split by stem by S-CMRL's rule: the first 70 % of each class train, the rest test.

    The original uses the file system's order, which is not reproducible. Here files are sorted by name.
    """
    splits: dict[str, str] = {}
    by_label: dict[str, list[str]] = {}
    for piece in slices:
        by_label.setdefault(piece.label, []).append(piece.stem)
    for stems in by_label.values():
        count = round(0.7 * len(stems))
        splits |= {stem: "train" if number < count else "test" for number, stem in enumerate(sorted(stems))}
    return splits


def splitter(split_by: str, slices: Sequence[Slice], where: str) -> Callable[[Slice], str]:
    """Return a function that returns the split of a slice.

    Raises:
        SourceError: a fold is needed, and UrbanSound8K.csv is missing or lacks a slice.
        UsageError: the split scheme is unknown.
    """
    if split_by == "random70":
        return lambda piece: random70_split(piece.fs_id)
    if split_by == "scmrl70":
        published = scmrl70_splits(slices)
        return lambda piece: published[piece.stem]
    if split_by not in SPLITS:
        msg = f"Unknown split scheme of UrbanSound8K: {split_by!r}."
        raise UsageError(msg, hint=did_you_mean(split_by, list(SPLITS)))
    unknown = [piece.stem for piece in slices if piece.fold is None]
    if unknown:
        msg = f"Unknown folds of {len(unknown)} slices ({unknown[0]} …): {where}."
        hint = "Copy UrbanSound8K.csv into the source folder, or use --split-by random70."
        raise SourceError(msg, hint=hint)
    test = int(split_by.removeprefix("fold:"))
    return lambda piece: fold_split(piece.fold or 0, test)


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """Return the clips of all WAVs below the folder, in any layout.

    Raises:
        SourceError: the folder is not UrbanSound8K, or lacks the folds of the split.
    """
    audios = find_audio(root)
    if not audios:
        raise _no_audio(root)
    table = find_csv(root)
    folds = parse_folds(table) if table else {}
    folds |= {stem: int(match[1]) for stem, path in audios.items() if (match := _fold_folder(path))}
    slices = [piece for stem in sorted(audios) if (piece := parse_stem(stem, folds))]
    split_of = splitter(split_by, slices, f"neither a folder fold1 to fold10 nor {CSV} in {root}")
    return [
        Clip(
            key=piece.stem, label=piece.label, group=piece.fs_id, split=split_of(piece),
            video=None, audio=audios[piece.stem],
            extras={"fs_id": piece.fs_id, **({"fold": piece.fold} if piece.fold else {})},
        )
        for piece in slices
    ]  # fmt: skip


def find_audio(root: Path) -> dict[str, Path]:
    """Return the WAV of each stem below the folder; of several, the one in a folder of a fold."""
    found: dict[str, Path] = {}
    for path in walk_files(root):
        if path.suffix.lower() != ".wav" or parse_stem(path.stem) is None or not path.is_file():
            continue
        other = found.setdefault(path.stem, path)
        if other != path:
            log.warning("%s is in two folders: %s and %s.", path.name, other.parent, path.parent)
            if not _fold_folder(other):
                found[path.stem] = path
    return found


def _fold_folder(path: Path) -> re.Match[str] | None:
    return FOLDER.fullmatch(path.parent.name)


def _no_audio(root: Path) -> SourceError:
    """Return an error that states what the folder holds, what is missing, and where to get it."""
    parquet = next((path for path in walk_files(root) if path.suffix == ".parquet"), None)
    if parquet is not None:
        msg = f"Folder holds Parquet files of UrbanSound8K, not WAVs: {root} ({parquet.name})."
        return SourceError(msg, hint=PARQUET_HINT)
    found = f"; {CSV} is there" if find_csv(root) else ""
    msg = f"Folder holds no sounds of UrbanSound8K: {root} (no files like fold5/100032-3-0-0.wav{found})."
    hint = (
        "Use --source with the folder of fold1 to fold10, or download the dataset with:"
        " avdata download urbansound8k"
    )
    return SourceError(msg, hint=hint)


def find_csv(root: Path) -> Path | None:
    """Return the UrbanSound8K.csv in or beside the folder, or None."""
    beside = () if (root / "manifest.json").is_file() else (root.parent, root.parent / "UrbanSound8K")
    for folder in (root, *sorted(root.glob("*/")), *beside):
        for path in (folder / CSV, folder / "metadata" / CSV):
            if path.is_file():
                return path
    return None


def lists(root: Path, split_by: str) -> list[Path]:
    """Return UrbanSound8K.csv, if there is one."""
    del split_by
    return [path for path in (find_csv(root),) if path]


def parse_folds(path: Path) -> dict[str, int]:
    """Return the fold by stem from UrbanSound8K.csv.

    Raises:
        SourceError: the file is not the one of UrbanSound8K.
    """
    hint = "Use the unchanged metadata/UrbanSound8K.csv of UrbanSound8K."
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if not {"slice_file_name", "fold"} <= set(rows.fieldnames or ()):
            msg = f"Columns slice_file_name and fold are missing: {path}."
            raise SourceError(msg, hint=hint)
        folds: dict[str, int] = {}
        for row in rows:
            fold = row["fold"] or ""
            if not (fold.isdigit() and 1 <= int(fold) <= FOLDS):
                msg = f"Invalid fold {fold!r} in line {rows.line_num} of {path}: not 1 to {FOLDS}."
                raise SourceError(msg, hint=hint)
            folds[Path(row["slice_file_name"]).stem] = int(fold)
    return folds


SPLITS = {
    **{
        f"fold:{fold}": f"fold {fold} test, fold {fold % FOLDS + 1} validates" for fold in range(1, FOLDS + 1)
    },
    "random70": "60, 10 and 30 % of the recordings by a hash of their id; none in two splits",
    "scmrl70": "first 70 % of each class by name, as S-CMRL has it; leaks recordings, has no validation",
}

PRESETS: Mapping[str, Overrides] = {
    # Slices have at most four seconds: four steps of one second.
    "snnergy": {
        "audio": {"hop_length": 125, "source": "wav"},
        "video": {"num_frames": 4},
        "align": {"window": "start", "seconds": 4.0},
    },
    "snnergy-repeat": {"audio": {"source": "wav"}},
}

RECIPE = Recipe(
    name="urbansound8k",
    version=1,
    title="UrbanSound8K",
    labels=LABELS,
    label_orders={"alphabetical": tuple(sorted(LABELS))},
    splits=SPLITS,
    default_split="fold:10",
    clips=clips,
    lists=lists,
    mock="avdata.recipes.urbansound8k_mock:write_mock",
    presets=PRESETS,
)
