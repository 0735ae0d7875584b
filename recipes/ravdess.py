"""RAVDESS: 24 actors speak and sing two sentences in eight emotions; 2,452 clips with audio and video.

Livingstone, Russo: The Ryerson Audio-Visual Database of Emotional Speech and Song, PLoS ONE 13(5), 2018.
https://zenodo.org/records/1188976

A file's name has seven numbers: modality, vocal channel, emotion, intensity, statement, repetition, actor. A
clip is a file of modality 01, audio and video. Its silent copy (02) and its WAV (03) are not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from avdata import Clip, Recipe, SourceError, UsageError
from avdata.config.overrides import Overrides
from avdata.errors import did_you_mean
from avdata.storage.paths import walk_files

LABELS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
"""In the order of their numbers 01 to 08; songs have the first six."""

CHANNELS = ("speech", "song")

STEM = re.compile(r"01-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")

ACTORS_PER_FOLD = 4

FOLDS = 6

OPTIONS = {"channel": "speech, song or both (default: both)"}


def split_of(actor: int, split_by: str) -> str:
    """Return the split of an actor: a fold of four actors is the test set, the fold before validates."""
    fold = (actor - 1) // ACTORS_PER_FOLD + 1
    test = FOLDS if split_by == "actor" else int(split_by.removeprefix("fold:"))
    return "test" if fold == test else "val" if fold == (test - 2) % FOLDS + 1 else "train"


def clips(root: Path, split_by: str, options: Mapping[str, str]) -> Sequence[Clip]:
    """Return the clips of all videos with sound below the folder, in any layout.

    Raises:
        SourceError: the folder holds no such videos of RAVDESS.
        UsageError: the value of an option is invalid.
    """
    channels = chosen_channels(options)
    videos: dict[str, Path] = {}
    for path in walk_files(root):
        if path.suffix.lower() in VIDEO_SUFFIXES and STEM.fullmatch(path.stem):
            videos.setdefault(path.stem, path)
    if not videos:
        msg = f"Folder holds no videos of RAVDESS: {root} (no files like Actor_01/01-01-01-01-01-01-01.mp4)."
        hint = "Use --source with the unpacked Video_Speech_Actor_01.zip …, or omit it to download them."
        raise SourceError(msg, hint=hint)
    found = [_clip(stem, path, split_by) for stem, path in sorted(videos.items())]
    return [clip for clip in found if clip.extras["channel"] in channels]


def chosen_channels(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the vocal channels of the option.

    Raises:
        UsageError: there is no such channel.
    """
    channel = options.get("channel", "both")
    if channel not in (*CHANNELS, "both"):
        msg = f"Invalid task option channel={channel}."
        raise UsageError(msg, hint=did_you_mean(channel, (*CHANNELS, "both")))
    return CHANNELS if channel == "both" else (channel,)


def _clip(stem: str, path: Path, split_by: str) -> Clip:
    match = STEM.fullmatch(stem)
    assert match is not None
    channel, emotion, intensity, statement, repetition, actor = map(int, match.groups())
    return Clip(
        key=stem, label=LABELS[emotion - 1], group=f"actor-{actor:02d}", split=split_of(actor, split_by),
        video=path,
        extras={
            "actor": actor, "channel": CHANNELS[channel - 1],
            "intensity": ("normal", "strong")[intensity - 1],
            "statement": statement, "repetition": repetition,
        },
    )  # fmt: skip


def _actors(fold: int) -> str:
    return f"{ACTORS_PER_FOLD * (fold - 1) + 1} to {ACTORS_PER_FOLD * fold}"


PRESETS: Mapping[str, Overrides] = {
    # The voice is in the middle of the clip, between half a second of silence and more.
    "snnergy": {"align": {"window": "center"}},
}

RECIPE = Recipe(
    name="ravdess",
    version=1,
    title="RAVDESS",
    labels=LABELS,
    splits={
        "actor": f"actors {_actors(6)} test, {_actors(5)} validate; two women and two men each",
        **{
            f"fold:{fold}": f"actors {_actors(fold)} test, {_actors((fold - 2) % FOLDS + 1)} validate"
            for fold in range(1, FOLDS + 1)
        },
    },
    default_split="actor",
    clips=clips,
    mock="avdata.recipes.ravdess_mock:write_mock",
    presets=PRESETS,
    options=OPTIONS,
)
