"""Mock of UrbanSound8K with generated sounds: folders, names, WAV formats, list and bad cases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from avdata.recipes.urbansound8k import CSV, FOLDS, LABELS

from avdata.testing import (
    Scene,
    Subtype,
    divide_clips,
    scene_audio,
    write_ground_truth,
    write_manifest,
    write_wav,
)

# WAV formats of the real files: sample rate, sample type, channels, extensible header.
KINDS: tuple[tuple[int, Subtype, int, bool], ...] = (
    (44_100, "s16", 2, False), (48_000, "s24", 2, False), (96_000, "s24", 2, True), (11_024, "u8", 1, False),
    (22_050, "s16", 1, False), (8_000, "s16", 1, False), (192_000, "s24", 1, False),
    (16_000, "float", 1, False),
    (44_100, "s32", 1, False),
)  # fmt: skip

SIZES = ((320, 240), (200, 300), (257, 191))

BEEP = 0.15


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds beep times, quarantine reason and flags of each slice."""
    rows = list(mock_slices(count or 20))
    truth: dict[str, dict[str, Any]] = {}
    for number, (stem, fold) in enumerate(rows):
        write_sound(_path(out, stem, fold), make_scene(stem, number, seed), number)
        truth[stem] = describe()
    if bad:
        for number, (stem, reason) in enumerate(_write_bad(out, seed).items()):
            rows.append((stem, number + 2))
            truth[stem] = describe(reason)
    folder = out / "UrbanSound8K" / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / CSV, rows)
    write_manifest(out, "urbansound8k")
    write_ground_truth(out, truth)


def mock_slices(count: int) -> Iterator[tuple[str, int]]:
    """Yield stem and fold of each slice; fold 10 is the test and fold 1 the validation set by default."""
    for number, (split, label) in enumerate(divide_clips(count, len(LABELS))):
        fold = {"test": FOLDS, "val": 1}.get(split, 2 + number // len(LABELS) % (FOLDS - 2))
        yield f"{100_000 + fold}{label}-{label}-0-{number // len(LABELS)}", fold


def make_scene(stem: str, number: int, seed: int, *, silent: bool = False) -> Scene:
    """Return the scene of a slice with a beep; gun shots are shorter than the others."""
    label = LABELS[int(stem.split("-")[1])]
    seconds = 0.3 if label == "gun_shot" else 4.0 if number % 3 else 1.7
    size = SIZES[number % len(SIZES)]
    return Scene(seconds=seconds, beeps=(BEEP,), seed=seed * 7_919 + number, size=size, silent=silent)


def write_sound(path: Path, scene: Scene, number: int) -> None:
    """Write the audio of a slice in one of the formats of the real files."""
    rate, subtype, channels, extensible = KINDS[number % len(KINDS)]
    write_wav(path, scene_audio(scene, rate), rate, subtype=subtype, channels=channels, extensible=extensible)


def write_csv(path: Path, rows: Iterable[tuple[str, int]]) -> None:
    """Write UrbanSound8K.csv for slices with their folds."""
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for stem, fold in rows:
        fs_id, label = stem.split("-")[:2]
        lines.append(f"{stem}.wav,{fs_id},0.0,4.0,1,{fold},{label},{LABELS[int(label)]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe(reason: str | None = None, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the ground truth of a slice."""
    return {"flash": [], "beep": [BEEP], "reason": reason, "flags": [] if reason else list(flags)}


def _path(out: Path, stem: str, fold: int) -> Path:
    return out / "UrbanSound8K" / "audio" / f"fold{fold}" / f"{stem}.wav"


def _write_bad(out: Path, seed: int) -> dict[str, str]:
    reasons = {"900003-3-0-0": "truncated", "900004-4-0-0": "silent_audio", "900005-5-0-0": "empty_file"}
    for number, (stem, reason) in enumerate(reasons.items()):
        path = _path(out, stem, number + 2)
        write_sound(path, make_scene(stem, 4, seed + 50 + number, silent=reason == "silent_audio"), 4)
        if reason == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif reason == "empty_file":
            path.write_bytes(b"")
    return reasons
