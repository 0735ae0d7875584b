"""Small clips in many containers, and damaged copies of them, which no run may end at."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from avdata.recipe import Clip, Recipe
from avdata.testing.media import Scene, write_av

HEADER_BYTES = 1024
"""Bytes at the start of a file that are changed."""

MAX_CHANGED = 3
"""Bytes of a file that are changed at most."""

TRUNCATED_SHARE = 0.2
"""Share of the copies that are cut as well."""

SCENE = Scene(seconds=0.8, flashes=(0.4,), beeps=(0.4,), size=(96, 64), fps=Fraction(25), rate=48_000)

MPEG4: dict[str, Any] = {"vcodec": "mpeg4", "acodec": "libmp3lame"}

DAMAGED_CONTAINERS: dict[str, dict[str, Any]] = {
    "mp4": {"vcodec": "libx264", "acodec": "aac"},
    "mov": {"vcodec": "mpeg4", "acodec": "pcm_s16le"},
    "mkv": {"vcodec": "libx264", "acodec": "flac"},
    "webm": {"vcodec": "libvpx", "acodec": "libopus", "options": {"deadline": "realtime"}},
    "avi": MPEG4,
    "flv": {"vcodec": "flv1", "acodec": "aac"},
    "mpg": {"vcodec": "mpeg1video", "acodec": "mp2"},
    "ts": {"vcodec": "mpeg2video", "acodec": "mp2"},
    "wmv": {"vcodec": "wmv2", "acodec": "wmav2"},
    "nut": MPEG4,
    "3gp": {"vcodec": "mpeg4", "acodec": "aac"},
}
"""Options of `write_av` by suffix."""


def damaged_copies(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield copies of a file with 1 to 3 bytes of its header changed, some of them cut."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        copy = bytearray(data)
        for position in rng.integers(0, min(HEADER_BYTES, len(data)), rng.integers(1, MAX_CHANGED + 1)):
            copy[position] = rng.integers(0, 256)
        end = rng.integers(1, len(data)) if rng.random() < TRUNCATED_SHARE else len(data)
        yield bytes(copy[:end])


def write_damaged_media(folder: Path, count: int, seed: int = 0) -> None:
    """Write damaged copies of a clip in each container, `count` in total."""
    folder.mkdir(parents=True, exist_ok=True)
    per_container = -(-count // len(DAMAGED_CONTAINERS))
    for number, (suffix, options) in enumerate(DAMAGED_CONTAINERS.items()):
        whole = folder / f"whole.{suffix}"
        write_av(whole, SCENE, **options)
        rest = min(per_container, count - number * per_container)
        for index, copy in enumerate(damaged_copies(whole.read_bytes(), rest, seed + number)):
            (folder / f"{suffix}-{index:05d}.{suffix}").write_bytes(copy)
        whole.unlink()


def _clips(root: Path, split_by: str) -> list[Clip]:
    del split_by
    files = sorted(path for path in root.iterdir() if path.is_file())
    return [Clip(key=path.stem, label="a", group=path.stem, split="train", video=path) for path in files]


def _mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    del bad
    write_damaged_media(out, count or 100, seed)


DAMAGED_RECIPE = Recipe(
    name="damaged", version=1, title="Damaged media", labels=("a",), clips=_clips, mock=_mock,
    splits={"all": "train only"}, default_split="all",
)  # fmt: skip
"""Recipe over a folder of any media files."""
