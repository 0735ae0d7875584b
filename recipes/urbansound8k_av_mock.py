"""A small UrbanSound8K-AV of generated media: its folders, names and many kinds of WAV, and its bad cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avdata.recipes.urbansound8k_av import LABELS

from avdata.testing.media import Scene, Subtype, scene_audio, scene_frame, write_image, write_wav
from avdata.testing.mock_dataset import write_ground_truth, write_manifest

# Rate, sample type, channels, extensible header: the kinds that the real files are of.
KINDS: tuple[tuple[int, Subtype, int, bool], ...] = (
    (44_100, "s16", 2, False), (48_000, "s24", 2, False), (96_000, "s24", 2, True), (11_024, "u8", 1, False),
    (22_050, "s16", 1, False), (8_000, "s16", 1, False), (192_000, "s24", 1, False),
    (16_000, "float", 1, False),
    (44_100, "s32", 1, False),
)  # fmt: skip

SIZES = ((320, 240), (200, 300), (257, 191))

BEEP = 0.15


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` says of each slice when it beeps and what is to become of it."""
    rows: list[tuple[str, int]] = []
    truth: dict[str, dict[str, Any]] = {}
    for number in range(count or 20):
        label = number % len(LABELS)
        # Two slices of each recording, so that a split can tear them apart.
        stem = f"{100_000 + number // 20}{label}-{label}-0-{number // 10}"
        _write_slice(out, stem, number, seed)
        rows.append((stem, number % 10 + 1))
        truth[stem] = {"flash": [], "beep": [BEEP], "reason": None, "flags": []}
    if bad:
        for number, (stem, facts) in enumerate(_bad(out, seed).items()):
            rows.append((stem, number % 10 + 1))
            truth[stem] = facts
    _write_csv(out, rows)
    write_manifest(out, "urbansound8k-av")
    write_ground_truth(out, truth)


def _paths(out: Path, stem: str) -> tuple[Path, Path]:
    name = LABELS[int(stem.split("-")[1])]
    return out / "vision" / name / f"{stem}.jpg", out / "audio" / name / f"{stem}.wav"


def _write_slice(out: Path, stem: str, number: int, seed: int, *, silent: bool = False) -> None:
    image, wav = _paths(out, stem)
    rate, subtype, channels, extensible = KINDS[number % len(KINDS)]
    label = int(stem.split("-")[1])
    seconds = 0.3 if LABELS[label] == "gun_shot" else 4.0 if number % 3 else 1.7
    scene = Scene(
        seconds=seconds,
        beeps=(BEEP,),
        seed=seed * 7_919 + number,
        size=SIZES[number % len(SIZES)],
        silent=silent,
    )
    write_wav(wav, scene_audio(scene, rate), rate, subtype=subtype, channels=channels, extensible=extensible)
    mode = ("RGB", "L", "CMYK", "RGB")[number % 4]
    write_image(image, scene_frame(scene, number), mode=mode, rotated=number % 5 == 3)


def _bad(out: Path, seed: int) -> dict[str, dict[str, Any]]:
    reasons = {
        "900001-1-0-0": "missing_audio",
        "900002-2-0-0": "missing_video",
        "900003-3-0-0": "truncated",
        "900004-4-0-0": "silent_audio",
        "900005-5-0-0": "empty_file",
        "900006-7-0-0": None,
        "900007-7-0-0": None,
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
    return {
        stem: {"flash": [], "beep": [BEEP], "reason": reason, "flags": [] if reason else ["dup_image_of"]}
        for stem, reason in reasons.items()
    }


def _write_csv(out: Path, rows: list[tuple[str, int]]) -> None:
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for stem, fold in rows:
        fs_id, label = stem.split("-")[:2]
        lines.append(f"{stem}.wav,{fs_id},0.0,4.0,1,{fold},{label},{LABELS[int(label)]}")
    (out / "UrbanSound8K.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
