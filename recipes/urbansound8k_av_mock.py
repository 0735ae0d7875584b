"""Mock of UrbanSound8K-AV with generated media: folders, names, WAV formats and bad cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avdata.recipes.urbansound8k import CSV, LABELS
from avdata.recipes.urbansound8k_mock import describe, make_scene, mock_slices, write_csv, write_sound

from avdata.testing import scene_frame, write_ground_truth, write_image, write_manifest


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds beep times, quarantine reason and flags of each slice."""
    rows = list(mock_slices(count or 20))
    truth: dict[str, dict[str, Any]] = {}
    for number, (stem, _) in enumerate(rows):
        _write_slice(out, stem, number, seed)
        truth[stem] = describe()
    if bad:
        for number, (stem, facts) in enumerate(_write_bad(out, seed).items()):
            rows.append((stem, 9 if stem.startswith(LEAKING) else number + 2))
            truth[stem] = facts
    write_csv(out / CSV, rows)
    write_manifest(out, "urbansound8k-av")
    write_ground_truth(out, truth)


def _paths(out: Path, stem: str) -> tuple[Path, Path]:
    name = LABELS[int(stem.split("-")[1])]
    return out / "vision" / name / f"{stem}.jpg", out / "audio" / name / f"{stem}.wav"


def _write_slice(out: Path, stem: str, number: int, seed: int, *, silent: bool = False) -> None:
    image, wav = _paths(out, stem)
    scene = make_scene(stem, number, seed, silent=silent)
    write_sound(wav, scene, number)
    mode = ("RGB", "L", "CMYK", "RGB")[number % 4]
    write_image(image, scene_frame(scene, number), mode=mode, rotated=number % 5 == 3)


LEAKING = "900010-8-0-"
"""Prefix of the slices of one recording that `scmrl70` divides."""


def _write_bad(out: Path, seed: int) -> dict[str, dict[str, Any]]:
    reasons = {
        "900001-1-0-0": "missing_audio",
        "900002-2-0-0": "missing_video",
        "900003-3-0-0": "truncated",
        "900004-4-0-0": "silent_audio",
        "900005-5-0-0": "empty_file",
        "900006-7-0-0": None,
        "900007-7-0-0": None,
        **{f"{LEAKING}{number}": None for number in range(4)},
    }
    for number, stem in enumerate(reasons):
        _write_slice(out, stem, 4, seed + 50 + number, silent=reasons[stem] == "silent_audio")
    _paths(out, "900001-1-0-0")[1].unlink()
    _paths(out, "900002-2-0-0")[0].unlink()
    cut = _paths(out, "900003-3-0-0")[1]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    _paths(out, "900005-5-0-0")[0].write_bytes(b"")
    twin, same = _paths(out, "900006-7-0-0")[0], _paths(out, "900007-7-0-0")[0]
    same.write_bytes(twin.read_bytes())
    (out / "vision" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    twins = {"900006-7-0-0", "900007-7-0-0"}
    return {
        stem: describe(reason, ("dup_image_of",) if stem in twins else ()) for stem, reason in reasons.items()
    }
