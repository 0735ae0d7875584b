"""Videos in one directory per label, `LABEL/NAME.mp4`: 60 % train, 20 % val and 20 % test by group."""

import hashlib
import re
from pathlib import Path

from avdata import Clip, Recipe

SUFFIXES = {".avi", ".flv", ".mkv", ".mov", ".mp4", ".mpg", ".webm"}


def group_of(video: Path) -> str:
    return video.stem  # change it to the speaker or the recording, if a file name contains it


def clips(root: Path, split_by: str) -> list[Clip]:
    videos = sorted(path for path in root.glob("*/*") if path.suffix.lower() in SUFFIXES)
    labels = {group_of(video): video.parent.name for video in videos}
    # By label, so that each label with five groups is in all splits, then in the order of a hash.
    groups = sorted(labels, key=lambda name: (labels[name], hashlib.sha256(name.encode()).digest()))
    splits = {
        name: ("test", "val", "train", "train", "train")[number % 5] for number, name in enumerate(groups)
    }
    return [
        Clip(
            key=re.sub(r"[^A-Za-z0-9_-]", "_", f"{video.parent.name}_{video.stem}"), label=video.parent.name,
            group=group_of(video), split=splits[group_of(video)], video=video,
        )
        for video in videos
    ]  # fmt: skip


RECIPE = Recipe(
    name="folders", version=1, title="Videos of my own", labels=(), clips=clips,
    source_labels=lambda root, found, options: sorted({clip.label for clip in found}),
    splits={"hash": "60, 20 and 20 % of the groups, in the order of a hash"}, default_split="hash",
)  # fmt: skip
