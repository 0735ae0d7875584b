"""Mock of RAVDESS with generated media: folders of actors, names, modalities, and bad cases."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from avdata.recipes.ravdess import LABELS

from avdata import UsageError
from avdata.testing import Scene, divide_clips, write_av, write_ground_truth, write_manifest

ACTORS = {"train": range(1, 17), "val": range(17, 21), "test": range(21, 25)}
"""Actors of each split of the default scheme."""

FAST = {"preset": "ultrafast"}

SONG_LABELS = 6


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds flash and beep times and the quarantine reason of each clip."""
    truth: dict[str, dict[str, Any]] = {}
    names = {(split, label): _names(split, label) for split in ACTORS for label in range(len(LABELS))}
    for number, place in enumerate(divide_clips(count or 24, len(LABELS))):
        name = next(names[place], None)
        if name is None:
            msg = f"RAVDESS has fewer clips than a mock of {count:,} needs."
            raise UsageError(msg, hint="Use --clips with 1,000 or fewer.")
        truth[f"01-{name}"] = _write(out, name, seed + number)
    if bad:
        truth |= _write_bad(out, seed + 900)
    write_manifest(out, "ravdess")
    write_ground_truth(out, truth)


def _names(split: str, label: int) -> Iterator[str]:
    """Yield the names of a label without the modality: speech and song in turns, then the next sentence."""
    channels = (1, 2) if label < SONG_LABELS else (1,)
    intensities = (1, 2) if label else (1,)  # neutral has no strong one
    for actor, intensity, repetition, statement, channel in product(
        ACTORS[split], intensities, (1, 2), (1, 2), channels
    ):
        yield f"{channel:02d}-{label + 1:02d}-{intensity:02d}-{statement:02d}-{repetition:02d}-{actor:02d}"


def _write(out: Path, stem: str, seed: int, *, silent: bool = False, muted: bool = False) -> dict[str, Any]:
    """Write a clip and its silent copy, which is no clip; return its truth."""
    scene = Scene(
        seconds=3.5, flashes=(1.5,), beeps=(1.5,), seed=seed, size=(96, 54), rate=48_000, silent=silent
    )
    folder = out / f"Actor_{stem[-2:]}"
    acodec = None if muted else "aac"
    write_av(folder / f"01-{stem}.mp4", scene, vcodec="libx264", acodec=acodec, options=FAST)
    write_av(folder / f"02-{stem}.mp4", scene, vcodec="libx264", acodec=None, options=FAST)
    return {"flash": [1.5], "beep": [] if silent or muted else [1.5], "reason": None, "flags": []}


def _write_bad(out: Path, seed: int) -> dict[str, dict[str, Any]]:
    silent, muted, cut = "01-02-01-02-02-03", "01-03-01-02-02-03", "01-04-01-02-02-03"
    truth = {
        f"01-{silent}": {**_write(out, silent, seed, silent=True), "reason": "silent_audio"},
        f"01-{muted}": {**_write(out, muted, seed + 1, muted=True), "reason": "no_audio_stream"},
        f"01-{cut}": {**_write(out, cut, seed + 2), "reason": "truncated"},
    }
    path = out / "Actor_03" / f"01-{cut}.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return truth
