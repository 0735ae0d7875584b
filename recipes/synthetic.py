"""Synthetic videos of three tasks, which test whether and how a network fuses audio and video.

`xor`: a tone in the low or high part of the mel range and a blob in the left or right part of the frame. The
label is whether the two agree. Each modality alone is at chance, and so is any sum of one score per modality
(late fusion). `xor4`: four places of each; the label is their sum modulo 4. `agree`: tone and blob both show
the label, one of four, but noise hides one of them in each video. One modality alone reaches 62.5 %, because
it guesses half of the labels; a sum of scores reaches 100 %.

The tasks are acceptance tests, demonstration, and the shortest recipe.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from avdata import Clip, Recipe, SourceError
from avdata.testing import Scene, write_av, write_ground_truth, write_manifest

COUNTS = {"train": 1024, "val": 128, "test": 256}

SECONDS, FPS, SIZE, RATE = 1.28, Fraction(25, 2), 32, 16_000

BANDS = {
    2: ((200.0, 900.0), (2_200.0, 6_500.0)),
    4: ((200.0, 450.0), (800.0, 1_250.0), (1_900.0, 2_900.0), (4_300.0, 6_500.0)),
}
"""Hz of the tones, by the number of places."""

BLOBS = {2: (2, 7, 7), 4: (0, 4, 5)}
"""First column within the place, end of the first columns, and width, pixels, by the number of places."""


@dataclass(frozen=True)
class Task:
    """Task of the synthetic videos.

    Attributes:
        prefix: prefix of the keys.
        places: number of places of the tone and of the blob.
        labels: label names.
        has_hidden: whether noise hides one modality in each video; both show the label then.
    """

    prefix: str
    places: int
    labels: tuple[str, ...]
    has_hidden: bool = False

    def draw(self, number: int) -> tuple[int | None, int | None, int]:
        """Return the places of tone and blob (None if hidden) and the label of video `number`.

        All combinations are equally frequent.
        """
        first, second = number % self.places, number // self.places % self.places
        if not self.has_hidden:
            return first, second, (first + second) % self.places
        # The parity of the second number selects the hidden modality.
        return (None, first, first) if second % 2 else (first, None, first)


TASKS = {
    "xor": Task("xor", 2, ("same", "different")),
    "xor4": Task("xor4", 4, ("0", "1", "2", "3")),
    "agree": Task("agree", 4, ("first", "second", "third", "fourth"), has_hidden=True),
}


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """Return the clips that `clips.csv` lists.

    Raises:
        SourceError: the list is missing.
    """
    del split_by  # there is only one
    table = root / "clips.csv"
    if not table.is_file():
        msg = f"Folder holds no synthetic dataset: {root} (clips.csv is missing)."
        raise SourceError(msg, hint="Omit --source to generate it, or run: avdata mock synthetic -o FOLDER")
    with table.open(newline="", encoding="utf-8") as lines:
        return [
            Clip(
                key=row["key"], label=row["label"], group=row["key"], split=row["split"],
                video=root / "clips" / f"{row['key']}.mkv",
                extras={half: int(row[half]) if row[half] else None for half in ("tone", "blob")},
            )
            for row in csv.DictReader(lines)
        ]  # fmt: skip


def _mock(task: Task, out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Generate the dataset of a task: `clips.csv` and one video per clip. It has no bad cases."""
    del bad
    sizes = COUNTS if count is None else _small_counts(count, len(task.labels))
    splits = [split for split, size in sizes.items() for _ in range(size)]
    rows: list[tuple[str, str, int | None, int | None, str]] = []
    for number, split in enumerate(splits):
        dice = np.random.default_rng([seed, number])
        # Val and test come first, so that each begins with a complete set of labels.
        tone, blob, label = task.draw((number - sizes["train"]) % len(splits))
        key = f"{task.prefix}{number:05d}"
        scene = Scene(seconds=SECONDS, fps=FPS, size=(SIZE, SIZE), rate=RATE)
        write_av(
            out / "clips" / f"{key}.mkv", scene, vcodec="ffv1", acodec="pcm_s16le", pix_fmt="bgr0",
            pixels=_frames(scene, blob, task.places, dice), samples=_tone(tone, task.places, dice),
            keyframes=1,
        )  # fmt: skip
        rows.append((key, split, tone, blob, task.labels[label]))
    with (out / "clips.csv").open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, lineterminator="\n").writerows([("key", "split", "tone", "blob", "label"), *rows])
    write_ground_truth(
        out, {row[0]: {"tone": row[2], "blob": row[3], "reason": None, "flags": []} for row in rows}
    )
    write_manifest(out, "synthetic")


def _small_counts(count: int, labels: int) -> dict[str, int]:
    """Return clips per split in the proportions of `COUNTS`.

    From three clips per label on, val and test have each label equally often, at least once.
    """
    least, step = (labels, labels) if count >= 3 * labels else (count // 3, 1)
    whole = sum(COUNTS.values())
    held_out = {split: max(least, count * COUNTS[split] // whole // step * step) for split in ("val", "test")}
    return {"train": count - sum(held_out.values()), **held_out}


def _frames(scene: Scene, blob: int | None, places: int, dice: np.random.Generator) -> np.ndarray:
    """Return frames uint8 [n, H, W, 3]: noise, and a bright blob that moves vertically in its place."""
    frames = dice.integers(0, 110, size=(scene.frames, SIZE, SIZE, 3), dtype=np.uint8)
    if blob is None:
        return frames
    first, last, width = BLOBS[places]
    column = int(dice.integers(first, last)) + blob * SIZE // places
    row = int(dice.integers(2, SIZE - 10))
    for number, frame in enumerate(frames):
        top = (row + number) % (SIZE - 9)
        frame[top : top + 8, column : column + width] = 230
    return frames


def _tone(tone: int | None, places: int, dice: np.random.Generator) -> np.ndarray:
    """Return mono audio float32 [n]: noise, and a tone with a random frequency in its band."""
    times = np.arange(round(SECONDS * RATE)) / RATE
    wave = np.zeros(len(times))
    if tone is not None:
        pitch = dice.uniform(*BANDS[places][tone])
        wave = 0.3 * np.sin(2 * np.pi * (pitch * times + dice.uniform()))
    return (wave + 0.02 * dice.normal(size=len(times))).astype(np.float32)


def _recipe(name: str, task: Task, title: str, tasks: Mapping[str, Recipe] | None = None) -> Recipe:
    return Recipe(
        name=name,
        version=1,
        title=title,
        labels=task.labels,
        splits={"fixed": "1,024, 128 and 256 clips, each generated for its split"},
        default_split="fixed",
        clips=clips,
        mock=partial(_mock, task),
        presets={
            "snnergy": {
                "audio": {"n_mels": 32, "n_fft": 512, "hop_length": 160},
                "video": {"num_frames": 4, "size": SIZE, "storage": "npy"},
                "align": {"window": "start", "seconds": SECONDS},
                "shards": {"samples_per_shard": 256},
            }
        },
        generated=True,
        tasks=tasks or {},
    )


RECIPE = _recipe(
    "synthetic",
    TASKS["xor"],
    "Synthetic audio-visual XOR",
    {
        "xor4": _recipe("synthetic-xor4", TASKS["xor4"], "Synthetic audio-visual XOR of four places"),
        "agree": _recipe("synthetic-agree", TASKS["agree"], "Synthetic films of which half is hidden"),
    },
)
