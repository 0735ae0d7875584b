"""Kinetics-Sounds: the clips of Kinetics-400 in 31 classes that are seen and heard, ten seconds each.

Arandjelović, Zisserman: Look, Listen and Learn, ICCV 2017 (arXiv 1705.08168), appendix A.1, which names 34
classes of a version of Kinetics before its release. Kay et al.: The Kinetics Human Action Video Dataset, 2017
(arXiv 1705.06950).

Clips are local files of Kinetics-400 in folders of their class, `train/CLASS/ID_000010_000020.mp4`, or flat
with annotations, as CVDF distributes them. The split `ogmge` has the published lists of OGM-GE (CVPR 2022),
which state the labels too. `kinetics` chooses by class.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avdata import Clip, Recipe, SourceError, UsageError
from avdata.config.overrides import Overrides
from avdata.storage.paths import source_dir, walk_files

LABELS = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet",
    "playing drums", "playing guitar", "playing harmonica", "playing keyboard", "playing organ",
    "playing piano", "playing saxophone", "playing trombone", "playing trumpet", "playing violin",
    "playing xylophone", "ripping paper", "shoveling snow", "shuffling cards", "singing", "stomping grapes",
    "tap dancing", "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip
"""The 31 classes of the literature that Kinetics-400 has; the index is the label of OGM-GE's lists."""

UNRELEASED = ("fingerpicking", "patting", "typing")
"""Classes of the paper's 34 that Kinetics-400 lacks."""

FORMER_NAMES = {
    "blowing out": "blowing out candles", "dribbling ball": "dribbling basketball",
    "mowing the lawn by pushing lawnmower": "mowing lawn", "stomping": "stomping grapes",
}  # fmt: skip
"""Names of classes in the paper, and in Kinetics-400."""

VIDEO = re.compile(r"([A-Za-z0-9_-]{11})_(\d{1,6})(?:_\d{1,6})?")

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")

LISTS = {"train": "my_train.txt", "test": "my_test.txt"}

VAL_SHARE = 0.1

OPTIONS = {
    "classes": "31: those that Kinetics-400 has; 34: also fingerpicking, patting and typing, which other"
    " versions of Kinetics have (default: 31)"
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Clip of a list: video, start in seconds, label."""

    video: str
    start: int
    label: str


def parse_list(text: str, name: str) -> list[Entry]:
    """Return the clips of a list of OGM-GE, one `ID_START[_END],SECONDS,LABEL` per line.

    >>> parse_list("--4-0ihtnBU_000058_000068,10,4", "my_train.txt")
    [Entry(video='--4-0ihtnBU', start=58, label='dribbling basketball')]

    Raises:
        SourceError: a line does not match the format; the message has its number.
    """
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        stem, _, label = [*line.split(","), "", ""][:3]
        match = VIDEO.fullmatch(stem)
        if match is None or not label.isdecimal() or int(label) >= len(LABELS):
            msg = f"Invalid row in {name}, line {number}: {line[:60]!r} is not ID_START_END,SECONDS,LABEL."
            raise SourceError(msg, hint="Use the unchanged lists of OGM-GE, data/KineticSound.")
        entries.append(Entry(match[1], int(match[2]), LABELS[int(label)]))
    return entries


def clips(root: Path, split_by: str, options: Mapping[str, str]) -> Sequence[Clip]:
    """Return the clips of the published lists, or those of the classes.

    Raises:
        SourceError: the folder holds no clips of Kinetics, or lacks the lists or labels.
        UsageError: the value of an option is invalid.
    """
    videos = find_videos(root)
    if not videos:
        msg = f"Folder holds no clips of Kinetics: {root} (no files like train/CLASS/ID_000010_000020.mp4)."
        hint = "Use --source with Kinetics-400 from https://github.com/cvdfoundation/kinetics-dataset."
        raise SourceError(msg, hint=hint)
    chosen = labels(root, (), options)
    if split_by == "kinetics":
        return _clips_of_classes(root, videos, chosen)
    found = []
    for split, name in LISTS.items():
        for entry in parse_list(_read_list(root, name), name):
            path = videos.get((entry.video, entry.start)) or _missing(root, split, entry)
            found.append(_clip(entry, path, carve_split(split, entry.video)))
    return sorted(found, key=lambda clip: clip.key)


def labels(root: Path, clips: Sequence[Clip], options: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the 31 or 34 classes."""
    del root, clips
    count = options.get("classes", "31")
    if count not in {"31", "34"}:
        msg = f"Invalid task option classes={count}."
        raise UsageError(msg, hint=f"Classes: {OPTIONS['classes']}.")
    return LABELS if count == "31" else (*LABELS, *UNRELEASED)


def find_videos(root: Path) -> dict[tuple[str, int], Path]:
    """Return the path of each video and start below the folder; of several, the first by path."""
    found: dict[tuple[str, int], Path] = {}
    for path in walk_files(root):
        if path.suffix.lower() in VIDEO_SUFFIXES and (match := VIDEO.fullmatch(path.stem)):
            found.setdefault((match[1], int(match[2])), path)
    return found


def _clip(entry: Entry, path: Path, split: str) -> Clip:
    return Clip(
        key=f"ks-{entry.video}_{entry.start:06d}", label=entry.label, group=entry.video, split=split,
        video=path, extras={"video_id": entry.video, "start": entry.start},
    )  # fmt: skip


def _missing(root: Path, split: str, entry: Entry) -> Path:
    return root / split / entry.label / f"{entry.video}_{entry.start:06d}_{entry.start + 10:06d}.mp4"


def carve_split(split: str, video: str) -> str:
    """Return the split of a clip; a tenth of the videos of train validate, by a hash of their id."""
    share = int.from_bytes(hashlib.sha256(f"kinetics-sounds:{video}".encode()).digest()[:4]) / 2**32
    return "val" if split == "train" and share < VAL_SHARE else split


def _clips_of_classes(
    root: Path, videos: Mapping[tuple[str, int], Path], chosen: Sequence[str]
) -> list[Clip]:
    """Return the clips whose folder or annotation has one of the classes, in Kinetics' own splits."""
    annotations = read_annotations(root)
    found = []
    for (video, start), path in videos.items():
        label, split = annotations.get((video, start), (path.parent.name, ""))
        label = FORMER_NAMES.get(name := label.replace("_", " "), name)
        if label in chosen:
            found.append(_clip(Entry(video, start, label), path, split or _split_in_path(root, path)))
    if not found:
        msg = f"No clip of {root} is in a folder of its class, and no annotations name one."
        raise SourceError(
            msg, hint="Copy train.csv and val.csv of Kinetics-400 into its annotations/ folder."
        )
    return sorted(found, key=lambda clip: clip.key)


def _split_in_path(root: Path, path: Path) -> str:
    """Return the split that a folder names: train, val or test."""
    for part in path.relative_to(root).parts[:-1]:
        match = re.fullmatch(r"(?:.*_)?(train|val|test)(?:_.*)?", part)
        if match:
            return match[1]
    msg = f"Split of {path} is unknown: no folder of its path is named train, val or test."
    raise SourceError(msg, hint="Use the folders of Kinetics-400, or --split-by ogmge.")


def read_annotations(root: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """Return label and split by video and start, of the CSVs of Kinetics in `annotations/` or the folder."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for path in annotation_files(root):
        for row in _annotation_rows(path):
            if (label := row.get("label")) and (split := row.get("split") or path.stem) in SPLIT_NAMES:
                found[row["youtube_id"], int(row["time_start"])] = label, SPLIT_NAMES[split]
    return found


SPLIT_NAMES = {"train": "train", "val": "val", "validate": "val", "test": "test"}


def annotation_files(root: Path) -> list[Path]:
    """Return the CSVs of Kinetics that the folder has."""
    folders = (root / "annotations", root)
    return [path for folder in folders for name in ("train", "val", "validate", "test")
            if (path := folder / f"{name}.csv").is_file()]  # fmt: skip


def _annotation_rows(path: Path) -> Iterator[Mapping[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if not {"youtube_id", "time_start"} <= set(rows.fieldnames or ()):
            msg = f"Columns youtube_id and time_start are missing: {path}."
            raise SourceError(msg, hint="Use the unchanged annotations of Kinetics-400.")
        for row in rows:
            if not (row["time_start"] or "").isdecimal():
                msg = f"Invalid time_start in line {rows.line_num} of {path}: {row['time_start']!r}."
                raise SourceError(msg, hint="Use the unchanged annotations of Kinetics-400.")
            yield row


def _read_list(root: Path, name: str) -> str:
    path = _find_list(root, name)
    if path is None:
        msg = f"List of OGM-GE is missing: {root / 'ogmge' / name}."
        hint = "Download it with: avdata download kinetics-sounds. Or use --split-by kinetics."
        raise SourceError(msg, hint=hint)
    return path.read_text(encoding="utf-8")


def _find_list(root: Path, name: str) -> Path | None:
    """Return a list in the folder of the clips, else the downloaded one."""
    folders = (root / "ogmge", root / "data" / "KineticSound", root, source_dir("kinetics-sounds") / "ogmge")
    return next((path for folder in folders if (path := folder / name).is_file()), None)


def lists(root: Path, split_by: str) -> list[Path]:
    """Return the published lists or the annotations, as the split scheme reads them."""
    if split_by == "kinetics":
        return annotation_files(root)
    return [path for name in LISTS.values() if (path := _find_list(root, name))]


PRESETS: Mapping[str, Overrides] = {
    # Ten steps of one second.
    "snnergy": {
        "audio": {"hop_length": 125},
        "video": {"num_frames": 10},
        "align": {"window": "start", "seconds": 10.0},
    },
}

RECIPE = Recipe(
    name="kinetics-sounds",
    version=1,
    title="Kinetics-Sounds",
    labels=LABELS,
    splits={
        "ogmge": "the lists of OGM-GE (CVPR 2022), 14,799 and 2,597 clips; a tenth of the videos of train"
        " validate, by their id",
        "kinetics": "train, val and test of Kinetics-400, with all clips of the classes",
    },
    default_split="ogmge",
    clips=clips,
    lists=lists,
    mock="avdata.recipes.kinetics_sounds_mock:write_mock",
    presets=PRESETS,
    options=OPTIONS,
    source_labels=labels,
)
