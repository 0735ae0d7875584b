"""Audio-visual XOR: small generated films whose label neither sound nor sight tells, nor both added up.

The sound is a tone in the low or in the high half of the mel range, the picture a blob in the left or in the
right half; the label is whether the two halves agree. Each alone is at chance, and so is any sum of a score
of the one and a score of the other: only a network in which the two meet can solve it. It is this package's
acceptance test and its demonstration, and the shortest recipe.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from avdata.errors import SourceError
from avdata.mock import Scene, write_av, write_manifest, write_truth
from avdata.recipe import Clip, Recipe

LABELS = ("same", "different")
COUNTS = {"train": 1024, "val": 128, "test": 256}
SECONDS, FPS, SIZE, RATE = 1.28, Fraction(25, 2), 32, 16_000
BANDS = ((200.0, 900.0), (2_200.0, 6_500.0))
"""Hz of the low and the high tones."""


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """The clips that `clips.csv` names.

    Raises:
        SourceError: there is no such list.
    """
    del split_by  # there is one way only
    table = root / "clips.csv"
    if not table.is_file():
        msg = f"{root} holds no synthetic set: there is no clips.csv"
        raise SourceError(msg, hint="leave out --source to generate it, or: avdata mock synthetic FOLDER")
    with table.open(newline="", encoding="utf-8") as lines:
        return [
            Clip(
                key=row["key"], label=row["label"], group=row["key"], split=row["split"],
                video=root / "clips" / f"{row['key']}.mkv",
                extras={"tone": int(row["tone"]), "blob": int(row["blob"])},
            )
            for row in csv.DictReader(lines)
        ]  # fmt: skip


def mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Generate the set: `clips.csv` and one film a clip. There are no bad cases to add."""
    del bad
    splits = [split for split, held in COUNTS.items() for _ in range(held)]
    if count is not None:
        splits = [splits[number * len(splits) // count] for number in range(count)]
    rows = []
    for number, split in enumerate(splits):
        dice = np.random.default_rng([seed, number])
        # All four combinations equally often, whatever the split.
        tone, blob = number % 2, number // 2 % 2
        key = f"xor{number:05d}"
        scene = Scene(seconds=SECONDS, fps=FPS, size=(SIZE, SIZE), rate=RATE)
        write_av(
            out / "clips" / f"{key}.mkv", scene, vcodec="ffv1", acodec="pcm_s16le", pix_fmt="bgr0",
            pixels=_film(scene, blob, dice), samples=_tone(tone, dice), keyframes=1,
        )  # fmt: skip
        rows.append((key, split, tone, blob, LABELS[(tone + blob) % 2]))
    with (out / "clips.csv").open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, lineterminator="\n").writerows([("key", "split", "tone", "blob", "label"), *rows])
    write_truth(out, {row[0]: {"tone": row[2], "blob": row[3], "reason": None, "flags": []} for row in rows})
    write_manifest(out, "synthetic")


def _film(scene: Scene, blob: int, dice: np.random.Generator) -> np.ndarray:
    """Frames uint8 [n, H, W, 3]: noise, and a bright blob that wanders in its half."""
    film = dice.integers(0, 110, size=(scene.frames, SIZE, SIZE, 3), dtype=np.uint8)
    column = int(dice.integers(2, SIZE // 2 - 9)) + blob * SIZE // 2
    row = int(dice.integers(2, SIZE - 10))
    for number, frame in enumerate(film):
        top = (row + number) % (SIZE - 9)
        frame[top : top + 8, column : column + 7] = 230
    return film


def _tone(tone: int, dice: np.random.Generator) -> np.ndarray:
    """Mono float32 [n]: noise, and a tone somewhere in its band."""
    when = np.arange(round(SECONDS * RATE)) / RATE
    pitch = dice.uniform(*BANDS[tone])
    wave = 0.3 * np.sin(2 * np.pi * (pitch * when + dice.uniform())) + 0.02 * dice.normal(size=len(when))
    return wave.astype(np.float32)


RECIPE = Recipe(
    name="synthetic",
    version=1,
    title="Synthetic audio-visual XOR",
    labels=LABELS,
    splits={"fixed": "1,024, 128 and 256 clips, each generated for its split"},
    default_split="fixed",
    clips=clips,
    mock=mock,
    presets={
        "snnergy": {
            "audio": {"n_mels": 32, "n_fft": 512, "hop": 160},
            "video": {"frames": 4, "size": 32, "storage": "npy"},
            "align": {"window": "start", "seconds": 1.28},
            "shards": {"samples": 256},
        }
    },
    generated=True,
)
