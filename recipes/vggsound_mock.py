"""Mock of VGGSound with generated media: names, list, and the irregularities of its copies."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from avdata.recipes.vggsound import CSV, LABELS, VAL_SHARE, Row, split_of

from avdata.testing import Scene, divide_clips, write_av, write_ground_truth, write_manifest

FAST = {"preset": "ultrafast"}

SCENES = 32
"""Number of different clips; a larger mock repeats their files, so that 20,000 clips take a minute."""


@dataclass
class _Case:
    row: Row
    scene: Scene | None
    reason: str | None = None
    flags: list[str] = field(default_factory=list)
    has_no_audio: bool = False


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds flash and beep times, quarantine reason and flags of each clip."""
    places = divide_clips(count or 12, len(LABELS))
    cases = [_plain(*place, number, seed) for number, place in enumerate(places)]
    if bad:
        cases += _irregular(seed) + _bad(seed)
    folder = out / "video"
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases):
        path = folder / f"{_stem(case.row)}.mp4"
        if SCENES <= number < len(places):
            shutil.copyfile(folder / f"{_stem(cases[number % SCENES].row)}.mp4", path)
        elif case.scene is not None:
            acodec = None if case.has_no_audio else "aac"
            write_av(path, case.scene, vcodec="libx264", acodec=acodec, options=FAST)
    if bad:
        _cut(folder)
    rows = "".join(
        f'{case.row.video},{case.row.start},"{case.row.label}",{case.row.split}\n' for case in cases
    )
    (out / CSV).write_text(rows, encoding="utf-8")
    write_manifest(out, "vggsound")
    write_ground_truth(out, {f"vgg-{_stem(case.row)}": _truth(case) for case in cases})


def _stem(row: Row) -> str:
    return f"{row.video}_{row.start:06d}"


def _truth(case: _Case) -> dict[str, Any]:
    return {
        "flash": list(case.scene.flashes if case.scene else ()),
        "beep": list(case.scene.beeps if case.scene and not case.has_no_audio else ()),
        "reason": case.reason,
        "flags": sorted(case.flags),
    }


def _scene(seed: int) -> Scene:
    """Return a scene of ten seconds with one flash and beep."""
    when = 1.5 + seed % 8
    return Scene(
        seconds=10.0, flashes=(when,), beeps=(when,), seed=seed, fps=Fraction(10), size=(64, 48), rate=16_000
    )


def _plain(split: str, label: int, number: int, seed: int) -> _Case:
    published = "test" if split == "test" else "train"
    for attempt in range(int(40 / VAL_SHARE)):
        video = f"{'-_ab'[number % 4]}{number:06d}{attempt:04d}"
        row = Row(video, 10 * (number % 40), LABELS[label], published)
        if split_of(row) == split:
            break
    return _Case(row, _scene(seed + number % SCENES))


def _irregular(seed: int) -> list[_Case]:
    """Return what the recipe keeps and flags: two clips of a video, few frames, no or less sound, short."""
    scene, label = _scene(seed + 900), LABELS[0]
    mute = replace(scene, silent=True, beeps=())
    return [
        _Case(Row("--twiceclip", 0, label, "train"), scene),
        _Case(Row("--twiceclip", 30, LABELS[1], "train"), scene),
        _Case(Row("lowrate0000", 30, label, "train"), replace(scene, fps=Fraction(5)), None,
              ["low_frame_rate"]),
        _Case(Row("shortclip00", 7, label, "train"), replace(scene, seconds=6.0, flashes=(), beeps=()), None,
              ["padded"]),
        _Case(Row("noaudio0000", 30, label, "train"), scene, None, ["no_audio"], has_no_audio=True),
        _Case(Row("silent00000", 30, label, "train"), mute, None, ["silent_audio"]),
    ]  # fmt: skip


def _bad(seed: int) -> list[_Case]:
    scene, label = _scene(seed + 950), LABELS[2]
    return [
        _Case(Row("vanished000", 30, label, "train"), None, "missing_video"),
        _Case(Row("vanished001", 30, label, "test"), None, "missing_video"),
        _Case(Row("truncated00", 30, label, "test"), scene, "truncated"),
    ]


def _cut(folder: Path) -> None:
    path = folder / "truncated00_000030.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
