"""AVE: 4,143 annotated events of 28 classes in 4,097 ten-second YouTube clips.

Tian, Shi, Li, Duan, Xu: Audio-Visual Event Localization in Unconstrained Videos, ECCV 2018 (arXiv
1803.08842). https://github.com/YapengTian/AVE-ECCV18

A clip is one row of `Annotations.txt`, `Category&VideoID&Quality&StartTime&EndTime`; the event holds in
[start, end), and the seconds outside it are background, label 28. 45 videos stand in two or three rows with
different classes, and 18 of them in train and in another split: the rows are kept as published and flagged.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avdata.errors import SampleFlag, SourceError
from avdata.recipe import Clip, Recipe

log = logging.getLogger(__name__)

LABELS = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane",
    "Race car, auto racing", "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute",
    "Ukulele", "Frying (food)", "Truck", "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock",
    "Banjo", "Goat", "Baby cry, infant cry", "Bus", "Chainsaw", "Cat", "Horse", "Toilet flush",
    "Rodents, rats, mice", "Accordion", "Mandolin",
)  # fmt: skip
"""In order of first appearance, which is the order of the authors' label files."""

EVENT = re.compile(r"[A-Za-z0-9_-]{11}&[^&]*&(?:[0-9]|10)&(?:[0-9]|10)")

HEADER = "Category&VideoID&Quality&StartTime&EndTime"

SPLIT_FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}


@dataclass(frozen=True, slots=True)
class Row:
    """One annotated event: its class, its video, and [start, end) in seconds."""

    label: str
    video: str
    start: int
    end: int


def parse_rows(text: str, name: str) -> list[Row]:
    """The rows of an annotation or split file, with or without the header line.

    >>> parse_rows("Frying (food)&--12UOziMF0&good&4&10", "trainSet.txt")
    [Row(label='Frying (food)', video='--12UOziMF0', start=4, end=10)]

    Raises:
        SourceError: a line is not of the grammar; the message gives its number.
    """
    rows = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip() or line == HEADER:
            continue
        fields = line.strip().split("&")
        if len(fields) != 5 or fields[0] not in LABELS or not EVENT.fullmatch("&".join(fields[1:])):
            msg = f"{name} line {number} is not {HEADER}: {line[:60]!r}"
            raise SourceError(msg, hint="use the text files of the AVE archive as they are")
        rows.append(Row(fields[0], fields[1], int(fields[3]), int(fields[4])))
    return rows


def make_clips(splits: dict[str, list[Row]], videos: dict[str, Path], missing: Path) -> list[Clip]:
    """Clips of the split files' rows.

    A key is `ave-SPLIT-ROW-ID`: ids may begin with `-` or `_`, and stand in several rows.

    Args:
        splits: rows by split, in the order of their files.
        videos: path by id.
        missing: folder that a video without a path is named in.
    """
    rows = [(split, number, row) for split, held in splits.items() for number, row in enumerate(held)]
    labels: dict[str, set[str]] = {}
    for _, _, row in rows:
        labels.setdefault(row.video, set()).add(row.label)
    clips = []
    for split, number, row in rows:
        noticed = (
            (SampleFlag.MULTI_LABEL, len(labels[row.video]) > 1),
            (SampleFlag.ZERO_LENGTH_EVENT, row.start >= row.end),
        )
        clips.append(
            Clip(
                key=f"ave-{split}-{number:04d}-{row.video}", label=row.label, group=row.video, split=split,
                video=videos.get(row.video, missing / f"{row.video}.mp4"),
                event=(float(row.start), float(row.end)),
                flags=tuple(flag for flag, holds in noticed if holds), extras={"video_id": row.video},
            )
        )  # fmt: skip
    return sorted(clips, key=lambda clip: clip.key)


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """The clips of the official splits.

    Raises:
        SourceError: the folder holds no AVE.
    """
    del split_by  # there is one way only
    base = next(
        (place for place in (root, *sorted(root.glob("*/"))) if (place / "trainSet.txt").is_file()), None
    )
    if base is None:
        msg = f"{root} holds no AVE: neither trainSet.txt nor a folder with it was found"
        raise SourceError(
            msg, hint="give the folder AVE_Dataset, with trainSet.txt and AVE/*.mp4, with --source"
        )
    splits = {}
    for split, name in SPLIT_FILES.items():
        path = base / name
        if not path.is_file():
            msg = f"{base} has no {name}"
            raise SourceError(
                msg, hint="the archive AVE_Dataset.zip holds trainSet.txt, valSet.txt and testSet.txt"
            )
        splits[split] = parse_rows(path.read_text(encoding="utf-8"), name)
    _check_annotations(base, splits)
    found = {path.stem: path for path in sorted(base.rglob("*.mp4"))}
    return make_clips(splits, found, base / "AVE")


def _check_annotations(base: Path, splits: dict[str, list[Row]]) -> None:
    """See that the split files hold the rows of Annotations.txt; a difference is worth a warning."""
    path = base / "Annotations.txt"
    if not path.is_file():
        return
    listed = Counter(parse_rows(path.read_text(encoding="utf-8"), path.name))
    held = Counter(row for rows in splits.values() for row in rows)
    if listed != held:
        apart = sum(((listed - held) + (held - listed)).values())
        log.warning("%d rows differ between Annotations.txt and the split files; the latter were used", apart)


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
    mock="avdata.recipes.ave_mock:write_mock",
    presets={
        # Ten steps of one second, as the dataset's labels have it.
        "snnergy": {
            "audio": {"hop_length": 125},
            "video": {"num_frames": 10},
            "align": {"window": "start", "seconds": 10.0},
        },
    },
)
