"""AVE: 4,143 annotated events of 28 classes in 4,097 ten-second YouTube clips.

Tian, Shi, Li, Duan, Xu: Audio-Visual Event Localization in Unconstrained Videos, ECCV 2018 (arXiv
1803.08842). https://github.com/YapengTian/AVE-ECCV18

A clip is one row of `Annotations.txt`, `Category&VideoID&Quality&StartTime&EndTime`; the event holds in
[start, end), and the seconds outside it are background, label 28. 45 videos are in two or three rows with
different classes, and 18 of them in train and in another split. These rows are kept as published and flagged.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avdata import Clip, Recipe, SampleFlag, SourceError
from avdata.storage.paths import walk_files

log = logging.getLogger(__name__)

LABELS = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane",
    "Race car, auto racing", "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute",
    "Ukulele", "Frying (food)", "Truck", "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock",
    "Banjo", "Goat", "Baby cry, infant cry", "Bus", "Chainsaw", "Cat", "Horse", "Toilet flush",
    "Rodents, rats, mice", "Accordion", "Mandolin",
)  # fmt: skip
"""In order of first appearance, which is the order of the authors' label files."""

VIDEO = re.compile(r"([A-Za-z0-9_-]{11})(?:_\d+_\d+)?")

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")

EVENT = re.compile(r"[A-Za-z0-9_-]{11}&[^&]*&(?:[0-9]|10)&(?:[0-9]|10)")

HEADER = "Category&VideoID&Quality&StartTime&EndTime"

ANNOTATIONS = "Annotations.txt"

SPLIT_FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}


@dataclass(frozen=True, slots=True)
class Row:
    """Annotated event: class, video, and [start, end) in seconds."""

    label: str
    video: str
    start: int
    end: int


def parse_rows(text: str, name: str) -> list[Row]:
    """Return the rows of an annotation or split file, with or without the header line.

    >>> parse_rows("Frying (food)&--12UOziMF0&good&4&10", "trainSet.txt")
    [Row(label='Frying (food)', video='--12UOziMF0', start=4, end=10)]

    Raises:
        SourceError: a line does not match the format; the message has its number.
    """
    rows = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip() or line == HEADER:
            continue
        fields = line.strip().split("&")
        if len(fields) != 5 or fields[0] not in LABELS or not EVENT.fullmatch("&".join(fields[1:])):
            msg = f"Invalid row in {name}, line {number}: {line[:60]!r} is not {HEADER}."
            raise SourceError(msg, hint="Use the unchanged text files of the AVE archive.")
        rows.append(Row(fields[0], fields[1], int(fields[3]), int(fields[4])))
    return rows


def make_clips(splits: dict[str, list[Row]], videos: dict[str, Path], missing: Path) -> list[Clip]:
    """Return the clips of the split files' rows.

    A key is `ave-SPLIT-ROW-ID`, because ids may begin with `-` or `_` and may be in several rows.

    Args:
        splits: rows by split, in the order of their files.
        videos: path by id.
        missing: folder for the path of a missing video.
    """
    rows = [(split, number, row) for split, listed in splits.items() for number, row in enumerate(listed)]
    labels: dict[str, set[str]] = {}
    for _, _, row in rows:
        labels.setdefault(row.video, set()).add(row.label)
    clips = []
    for split, number, row in rows:
        flags = (
            (SampleFlag.MULTI_LABEL, len(labels[row.video]) > 1),
            (SampleFlag.ZERO_LENGTH_EVENT, row.start >= row.end),
        )
        clips.append(
            Clip(
                key=f"ave-{split}-{number:04d}-{row.video}", label=row.label, group=row.video, split=split,
                video=videos.get(row.video, missing / f"{row.video}.mp4"),
                event=(float(row.start), float(row.end)),
                flags=tuple(flag for flag, applies in flags if applies), extras={"video_id": row.video},
            )
        )  # fmt: skip
    return sorted(clips, key=lambda clip: clip.key)


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """Return the clips of the official splits.

    Raises:
        SourceError: the folder is not AVE.
    """
    del split_by  # there is only one
    base = _find_lists(root)
    if base is None and (count := len(find_videos(root))):
        msg = f"Folder holds {count:,} videos, and no lists of AVE: {root} (trainSet.txt is missing)."
        hint = "Copy trainSet.txt, valSet.txt and testSet.txt from the archive AVE_Dataset.zip."
        raise SourceError(msg, hint=hint)
    if base is None:
        msg = f"Folder holds no AVE dataset: {root} (trainSet.txt is missing)."
        raise SourceError(msg, hint="Use --source with the folder AVE_Dataset (trainSet.txt, AVE/*.mp4).")
    splits = {}
    for split, name in SPLIT_FILES.items():
        path = base / name
        if not path.is_file():
            msg = f"Split file is missing: {path}."
            raise SourceError(
                msg, hint="Copy trainSet.txt, valSet.txt and testSet.txt from the archive AVE_Dataset.zip."
            )
        splits[split] = parse_rows(path.read_text(encoding="utf-8"), name)
    _check_annotations(base, splits)
    videos = find_videos(root)
    if not videos:
        raise _no_videos(root, base)
    return make_clips(splits, videos, root / "AVE")


def find_videos(root: Path) -> dict[str, Path]:
    """Return the video of each id below the folder, named by the id alone or with a time range.

    Of several videos of an id, the one named by the id alone is returned, then the first by path.
    """
    found: dict[str, Path] = {}
    for path in walk_files(root):
        match = VIDEO.fullmatch(path.stem)
        if (
            match
            and path.suffix.lower() in VIDEO_SUFFIXES
            and (path.stem == match[1] or match[1] not in found)
        ):
            found[match[1]] = path
    return found


def _no_videos(root: Path, base: Path) -> SourceError:
    msg = (
        f"Folder holds the lists of AVE in {base}, and no videos: {root} (no files like AVE/RUhOCu3LNXM.mp4)."
    )
    archive = next((path for path in walk_files(root) if path.suffix == ".zip"), None)
    hint = "Unpack the videos of AVE_Dataset.zip into it, or omit --source to download the dataset."
    return SourceError(msg, hint=f"Unpack {archive} first." if archive else hint)


def _find_lists(root: Path) -> Path | None:
    """Return the folder of the split files: the root, or a folder in it, such as `data/`."""
    folders = (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/")))
    return next((folder for folder in folders if (folder / "trainSet.txt").is_file()), None)


def lists(root: Path, split_by: str) -> list[Path]:
    """Return the annotations, if there are any, and the split files."""
    del split_by
    base = _find_lists(root) or root
    return [path for name in (*SPLIT_FILES.values(), ANNOTATIONS) if (path := base / name).is_file()]


def _check_annotations(base: Path, splits: dict[str, list[Row]]) -> None:
    """Warn if the rows of the split files differ from those of Annotations.txt."""
    path = base / ANNOTATIONS
    if not path.is_file():
        return
    listed = Counter(parse_rows(path.read_text(encoding="utf-8"), path.name))
    split_rows = Counter(row for rows in splits.values() for row in rows)
    if listed != split_rows:
        count = sum(((listed - split_rows) + (split_rows - listed)).values())
        log.warning("%d rows differ between %s and the split files. The split files are used.", count, path)


RECIPE = Recipe(
    name="ave",
    version=1,
    title="AVE",
    labels=LABELS,
    label_orders={"alphabetical": tuple(sorted(LABELS))},
    background="Background",
    splits={"official": "3,339, 402 and 402 rows, as published; 18 videos are in train and in another split"},
    default_split="official",
    clips=clips,
    lists=lists,
    mock="avdata.recipes.ave_mock:write_mock",
    presets={
        # Ten steps of one second, like the labels of the dataset.
        "snnergy": {
            "audio": {"hop_length": 125},
            "video": {"num_frames": 10},
            "align": {"window": "start", "seconds": 10.0},
        },
    },
)
