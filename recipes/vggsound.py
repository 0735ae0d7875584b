"""VGGSound: 199,176 ten-second YouTube clips of 309 sound events, published as a list of videos.

Chen, Xie, Vedaldi, Zisserman: VGGSound: A Large-scale Audio-Visual Dataset, ICASSP 2020 (arXiv 2004.14368).
https://www.robots.ox.ac.uk/~vgg/data/vggsound/

A clip is one row of `vggsound.csv`, `YouTube ID, start in seconds, label, split`. Its video is named by id
and start, `ID_000030.mp4`, in any folder or in tars of the WebDataset layout. Videos vanish from YouTube, so
copies differ: a listed clip without video is quarantined as `missing_video`. Validation is taken from train
by a hash of the video's id.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from avdata import Clip, Recipe, SourceError
from avdata.config.overrides import Overrides
from avdata.manifest import load_labels, load_manifest
from avdata.sources.tar_source import TarSource
from avdata.storage.paths import walk_files

LABELS = load_labels("vggsound.labels.tsv")

CSV = "vggsound.csv"

VIDEO = re.compile(r"([A-Za-z0-9_-]{11})_(\d{1,8})(?:_(\d{1,8}))?")

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")

VAL_SHARE = 0.05


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """Row of the list: video, start in seconds, label, and `train` or `test`."""

    video: str
    start: int
    label: str
    split: str


def parse_rows(lines: Iterator[str], name: str) -> list[Row]:
    """Return the rows of the list.

    >>> parse_rows(iter(["--0PQM4-hqg,30,waterfall burbling,train"]), "vggsound.csv")
    [Row(video='--0PQM4-hqg', start=30, label='waterfall burbling', split='train')]

    Raises:
        SourceError: a line does not match the format, or repeats a clip; the message has its number.
    """
    labels = {label: label for label in LABELS}
    reader = csv.reader(lines)
    rows: dict[tuple[str, int], Row] = {}
    for fields in reader:
        if not fields:
            continue
        video, start, label, split = fields if len(fields) == 4 else ("", "", "", "")
        is_named = start.isdecimal() and VIDEO.fullmatch(f"{video}_{start}")
        is_valid = is_named and label in labels and split in {"train", "test"}
        if not is_valid or (video, int(start)) in rows:
            problem = "Repeated clip" if is_valid else "Invalid row"
            msg = f"{problem} in {name}, line {reader.line_num}: {','.join(fields)[:80]!r}."
            raise SourceError(msg, hint="Use the unchanged vggsound.csv: ID,start,label,train or test.")
        rows[video, int(start)] = Row(video, int(start), labels[label], split)
    return list(rows.values())


def parse_stem(stem: str) -> tuple[str, int] | None:
    """Return the video and the start in seconds of a file's name, or None if the name is another one.

    >>> parse_stem("--0PQM4-hqg_000030"), parse_stem("--0PQM4-hqg_30000_40000")
    (('--0PQM4-hqg', 30), ('--0PQM4-hqg', 30))
    """
    match = VIDEO.fullmatch(stem)
    if match is None:
        return None
    start, end = int(match[2]), int(match[3] or 0)
    # Names with an end count in seconds, or in milliseconds.
    return match[1], start // 1000 if end - start >= 1000 else start


def split_of(row: Row) -> str:
    """Return the split of a row: 5 % of the videos of train validate, by a hash of their id."""
    if row.split == "test":
        return "test"
    share = int.from_bytes(hashlib.sha256(f"vggsound:{row.video}".encode()).digest()[:4]) / 2**32
    return "val" if share < VAL_SHARE else "train"


def clips(source: Path | TarSource, split_by: str) -> Sequence[Clip]:
    """Return the clips of the list, whether or not their video exists.

    Raises:
        SourceError: the source has no list, or no clip of it.
    """
    del split_by  # there is only one
    root = source if isinstance(source, Path) else source.root
    table = find_list(root)
    if table is None:
        url = load_manifest("vggsound").sources[0].urls[0]
        msg = f"Folder holds no list of VGGSound: {root} ({CSV} is missing)."
        raise SourceError(msg, hint=f"Download {url} to {root / CSV}.")
    with table.open(newline="", encoding="utf-8-sig") as lines:
        rows = parse_rows(lines, table.name)
    videos = _tar_members(source) if isinstance(source, TarSource) else find_videos(source)
    if not videos:
        raise _no_videos(root)
    stems = sorted((f"{row.video}_{row.start:06d}", row) for row in rows)
    return [
        Clip(
            key=f"vgg-{stem}", label=row.label, group=row.video, split=split_of(row),
            video=videos.get((row.video, row.start)) or root / "video" / f"{stem}.mp4",
            extras={"video_id": row.video, "start": row.start},
        )
        for stem, row in stems
    ]  # fmt: skip


def find_list(root: Path) -> Path | None:
    """Return the list in the folder, or in a folder in it, such as `data/`."""
    return next((path for path in (root / CSV, *sorted(root.glob(f"*/{CSV}"))) if path.is_file()), None)


def find_videos(root: Path) -> dict[tuple[str, int], Path]:
    """Return the path of each video and start below the folder; of several, the first by path."""
    found: dict[tuple[str, int], Path] = {}
    for path in walk_files(root):
        if path.suffix.lower() in VIDEO_SUFFIXES and (clip := parse_stem(path.stem)):
            found.setdefault(clip, path)
    return found


def _tar_members(tars: TarSource) -> dict[tuple[str, int], Path]:
    found: dict[tuple[str, int], Path] = {}
    for sample in tars.samples:
        clip = parse_stem(PurePosixPath(sample.key).name)
        suffix = next((name for name in VIDEO_SUFFIXES if name[1:] in sample.members), None)
        if clip is not None and suffix is not None:
            found.setdefault(clip, tars.path(sample, suffix[1:]))
    return found


def _no_videos(root: Path) -> SourceError:
    archive = next((path for path in walk_files(root) if path.name.endswith(".tar.gz")), None)
    msg = f"Folder holds the list of VGGSound and no videos: {root} (no files like ---g-f_I2yQ_000001.mp4)."
    hint = "Use --source with a folder or tars of the clips, or omit it to download the copy of the Hub."
    return SourceError(msg, hint=f"Unpack {archive} first." if archive else hint)


def lists(root: Path, split_by: str) -> list[Path]:
    """Return the list, if there is one."""
    del split_by
    return [path for path in (find_list(root),) if path]


QUALITY: Overrides = {"no_audio": "flag", "silent": "flag", "min_fps": 10.0, "max_padding": 0.05}
"""Clips with few frames, without sound or shorter than ten seconds are flagged: copies have many of them."""

OTHER_PRESETS = ("snnergy-repeat", "ogmge", "scmrl", "ogmge-1fps", "balancemm")

PRESETS: Mapping[str, Overrides] = {
    # Ten steps of one second.
    "snnergy": {
        "audio": {"hop_length": 125},
        "video": {"num_frames": 10},
        "align": {"window": "start", "seconds": 10.0},
        "quality": QUALITY,
    },
    **{name: {"quality": QUALITY} for name in OTHER_PRESETS},
}

RECIPE = Recipe(
    name="vggsound",
    version=1,
    title="VGGSound",
    labels=LABELS,
    splits={"official": "train and test as published; 5 % of the videos of train validate, by their id"},
    default_split="official",
    clips=clips,
    lists=lists,
    mock="avdata.recipes.vggsound_mock:write_mock",
    presets=PRESETS,
    source_kind="any",
)
