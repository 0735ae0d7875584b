"""UrbanSound8K-AV: UrbanSound8K's 8,732 sound slices of 10 classes, each with one still image of its class.

Guo, Gao, Qu, Zheng, Jiang, Lu, Qiao: Transformer-Based Spiking Neural Networks for Multimodal Audiovisual
Classification, IEEE TCDS 16(3), 2024; the sounds: Salamon, Jacoby, Bello: A Dataset and Taxonomy for Urban
Sound Research, ACM MM 2014.

A clip is `CLASS/STEM.wav` with `CLASS/STEM.jpg`; the stem `fsID-classID-occurrence-slice` is UrbanSound8K's.
Slices of one Freesound recording (fsID) belong together: a split that tears them apart leaks. The default is
UrbanSound8K's own folds with fold 10 as test set; `random70` is the literature's share of 70 % with
recordings kept whole, and `scmrl70` the published rule, which leaks.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avdata.errors import SampleFlag, SourceError, UsageError, did_you_mean
from avdata.recipe import Clip, Recipe
from avdata.storage.hashing import hash_file

log = logging.getLogger(__name__)

LABELS = (
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot",
    "jackhammer", "siren", "street_music",
)  # fmt: skip

STEM = re.compile(r"(\d+)-(\d)-(\d+)-(\d+)")

VISION = ("vision", "Dataset_v3_vision")

SOUND = ("audio", "sound", "Dataset_v3_sound")

FOLDS = 10

IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True)
class Slice:
    """A sound slice by its name: recording, label and, where UrbanSound8K.csv tells, fold."""

    stem: str
    fs_id: str
    label: str
    fold: int | None = None


def parse_stem(stem: str, folds: Mapping[str, int] | None = None) -> Slice | None:
    """The slice of a stem, or None for a name that is none.

    >>> parse_stem("100032-3-0-0").label
    'dog_bark'
    """
    named = STEM.fullmatch(stem)
    if named is None:
        return None
    return Slice(stem, named[1], LABELS[int(named[2])], (folds or {}).get(stem))


def fold_split(fold: int, test: int) -> str:
    """The split of a fold when fold `test` is the test set and the next one validates."""
    return "test" if fold == test else "val" if fold == test % FOLDS + 1 else "train"


def random70_split(fs_id: str) -> str:
    """The split of a recording by a hash of its id: 60 % train, 10 % val, 30 % test."""
    share = int.from_bytes(hashlib.sha256(f"random70:{fs_id}".encode()).digest()[:4]) / 2**32
    return "train" if share < 0.6 else "val" if share < 0.7 else "test"


def scmrl70_splits(slices: Iterable[Slice]) -> dict[str, str]:
    """S-CMRL's rule by stem: of each class the first 70 % train, rounded, the rest test.

    They took the files in the order of the file system, which nobody can repeat; here they are sorted by
    name.
    """
    splits: dict[str, str] = {}
    held: dict[str, list[str]] = {}
    for piece in slices:
        held.setdefault(piece.label, []).append(piece.stem)
    for stems in held.values():
        first = round(0.7 * len(stems))
        splits |= {stem: "train" if place < first else "test" for place, stem in enumerate(sorted(stems))}
    return splits


def splitter(split_by: str, slices: Sequence[Slice], where: str) -> Callable[[Slice], str]:
    """The split of each slice.

    Raises:
        SourceError: folds are asked for and UrbanSound8K.csv is not there or does not name a slice.
        UsageError: there is no such way of splitting.
    """
    if split_by == "random70":
        return lambda piece: random70_split(piece.fs_id)
    if split_by == "scmrl70":
        published = scmrl70_splits(slices)
        return lambda piece: published[piece.stem]
    if split_by not in SPLITS:
        msg = f"urbansound8k-av has no split {split_by!r}"
        raise UsageError(msg, hint=did_you_mean(split_by, list(SPLITS)))
    unknown = [piece.stem for piece in slices if piece.fold is None]
    if unknown:
        msg = f"the folds of {len(unknown)} slices ({unknown[0]} …) are unknown: {where}"
        raise SourceError(
            msg,
            hint="put UrbanSound8K.csv into the source folder, or use --split-by random70",
        )
    test = int(split_by.removeprefix("fold:"))
    return lambda piece: fold_split(piece.fold or 0, test)


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """Every slice of which the folder holds the sound, the image, or both.

    Raises:
        SourceError: the folder holds no UrbanSound8K-AV, or lacks what the split is made from.
    """
    vision, sound = _find_pair(root) or (None, None)
    if vision is None or sound is None:
        msg = f"{root} holds no UrbanSound8K-AV: no folder {' or '.join(VISION)} beside {' or '.join(SOUND)}"
        raise SourceError(msg, hint="give the unpacked Kaggle dataset with --source")
    folds, where = _read_folds(root)
    images = _by_stem(path for path in vision.glob("*/*") if path.suffix.lower() in IMAGES)
    sounds = _by_stem(sound.glob("*/*.wav"))
    stems = sorted({*images, *sounds})
    slices = [piece for stem in stems if (piece := parse_stem(stem, folds))]
    split_of = splitter(split_by, slices, where)
    twins = _same_bytes(images)
    return [
        Clip(
            key=piece.stem, label=piece.label, group=piece.fs_id, split=split_of(piece),
            video=images.get(piece.stem, vision / piece.label / f"{piece.stem}.jpg"),
            audio=sounds.get(piece.stem, sound / piece.label / f"{piece.stem}.wav"),
            is_image=True, flags=(SampleFlag.DUP_IMAGE,) if piece.stem in twins else (),
            extras={"fs_id": piece.fs_id, **({"fold": piece.fold} if piece.fold else {})},
        )
        for piece in slices
    ]  # fmt: skip


def _find_pair(root: Path) -> tuple[Path, Path] | None:
    """The folders of images and sounds that stand side by side; UrbanSound8K's own `audio` stands alone."""
    for place in (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))):
        held = [[place / name for name in names if (place / name).is_dir()] for names in (VISION, SOUND)]
        if all(held):
            return held[0][0], held[1][0]
    return None


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """The file of each stem; one that lies in several folders is taken from the folder of its class."""
    found: dict[str, Path] = {}
    for path in sorted(paths):
        piece = parse_stem(path.stem)
        at_home = piece is not None and path.parent.name == piece.label
        if path.stem in found:
            log.warning("%s lies in two folders, %s and %s", path.name, found[path.stem].parent, path.parent)
        if path.is_file() and (at_home or path.stem not in found):
            found[path.stem] = path
    return found


def _read_folds(root: Path) -> tuple[dict[str, int], str]:
    """Fold by stem from UrbanSound8K.csv in or beside the folder, and where it was looked for.

    Raises:
        SourceError: the file is not UrbanSound8K's.
    """
    beside = () if (root / "manifest.json").is_file() else (root.parent, root.parent / "UrbanSound8K")
    for place in (root, *sorted(root.glob("*/")), *beside):
        for path in (place / "UrbanSound8K.csv", place / "metadata" / "UrbanSound8K.csv"):
            if path.is_file():
                return _parse_folds(path), f"{path} lacks them"
    return {}, f"there is no UrbanSound8K.csv in {root}"


def _parse_folds(path: Path) -> dict[str, int]:
    hint = "use metadata/UrbanSound8K.csv of UrbanSound8K as it is"
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if not {"slice_file_name", "fold"} <= set(rows.fieldnames or ()):
            msg = f"{path} has no columns slice_file_name and fold"
            raise SourceError(msg, hint=hint)
        folds: dict[str, int] = {}
        for row in rows:
            fold = row["fold"] or ""
            if not (fold.isdigit() and 1 <= int(fold) <= FOLDS):
                msg = f"{path} line {rows.line_num} gives the fold {fold!r}, which is none of 1 to {FOLDS}"
                raise SourceError(msg, hint=hint)
            folds[Path(row["slice_file_name"]).stem] = int(fold)
    return folds


def _same_bytes(images: Mapping[str, Path]) -> set[str]:
    """Stems whose image is another one's too; only files of equal size are read."""
    by_size: dict[int, list[str]] = {}
    for stem, path in images.items():
        by_size.setdefault(path.stat().st_size, []).append(stem)
    by_hash: dict[str, list[str]] = {}
    for size, stems in by_size.items():
        for stem in stems if size and len(stems) > 1 else ():
            by_hash.setdefault(hash_file(images[stem]), []).append(stem)
    return {stem for stems in by_hash.values() if len(stems) > 1 for stem in stems}


SPLITS = {
    **{
        f"fold:{fold}": f"fold {fold} test, fold {fold % FOLDS + 1} validates" for fold in range(1, FOLDS + 1)
    },
    "random70": "60, 10 and 30 % of the recordings by a hash of their id; none in two splits",
    "scmrl70": "first 70 % of each class by name, as S-CMRL has it; leaks recordings, has no validation",
}

RECIPE = Recipe(
    name="urbansound8k-av",
    version=1,
    title="UrbanSound8K-AV",
    labels=LABELS,
    label_orders={"alphabetical": tuple(sorted(LABELS))},
    splits=SPLITS,
    default_split="fold:10",
    clips=clips,
    mock="avdata.recipes.urbansound8k_av_mock:write_mock",
    presets={
        # The slices are of four seconds at most: four steps of one second.
        "snnergy": {
            "audio": {"hop_length": 125, "source": "wav"},
            "video": {"num_frames": 4},
            "align": {"window": "start", "seconds": 4.0},
        },
        "snnergy-repeat": {"audio": {"source": "wav"}},
    },
)
