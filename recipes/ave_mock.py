"""Mock of AVE with generated media: folders, lists, codecs and bad cases."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from avdata.recipes.ave import HEADER, LABELS, SPLIT_FILES, Row

from avdata.testing import Scene, divide_clips, write_av, write_ground_truth, write_manifest

FAST = {"preset": "ultrafast"}


@dataclass
class _Case:
    split: str
    row: Row
    scene: Scene | None
    reason: str | None = None
    flags: list[str] = field(default_factory=list)
    late: float = 0.0
    has_no_audio: bool = False


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds flash and beep times, quarantine reason and flags of each row.

    The special cases of the real data are written unless a number of clips without bad ones is given.
    """
    places = divide_clips(count or 12, len(LABELS))
    cases = [_plain(*place, number, seed) for number, place in enumerate(places)]
    if bad or count is None:
        cases += _special(seed)
    if bad:
        cases += _bad(seed)
    folder = out / "AVE_Dataset" / "AVE"
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        path = folder / f"{case.row.video}.mp4"
        if case.scene is not None and not path.exists():
            acodec = None if case.has_no_audio else "aac"
            write_av(path, case.scene, vcodec="libx264", acodec=acodec, options=FAST, audio_start=case.late)
    if bad:
        _spoil(folder)
    truth = _write_lists(folder.parent, cases)
    write_manifest(out, "ave")
    write_ground_truth(out, truth)


def _scene(seed: int, start: int, end: int) -> Scene:
    """Return a scene of ten seconds with a flash and a beep half a second into the event."""
    times = (start + 0.5,) if end > start else ()
    return Scene(
        seconds=10.0, flashes=times, beeps=times, seed=seed, fps=Fraction(10), size=(160, 120), channels=2
    )


def _plain(split: str, label: int, number: int, seed: int) -> _Case:
    start, end = (0, 10) if number % 3 else (4, 10)
    video = f"{'-_ab'[number % 4]}{number:06d}mock"
    return _Case(split, Row(LABELS[label], video, start, end), _scene(seed + number, start, end))


def _special(seed: int) -> list[_Case]:
    """Return special cases of the real data: ids with dashes, several rows per video, a leak."""
    scene = _scene(seed + 900, 2, 9)
    twice, leaking = ["multi_label"], ["multi_label", "split_leak"]
    return [
        _Case("train", Row("Bark", "--12UOziMoc", 2, 9), scene),
        _Case("train", Row("Banjo", "twicelabel0", 2, 9), scene, flags=twice),
        _Case("train", Row("Mandolin", "twicelabel0", 2, 9), scene, flags=twice),
        _Case("train", Row("Truck", "leakingvid0", 2, 9), scene, flags=leaking),
        _Case("test", Row("Bus", "leakingvid0", 2, 9), scene, flags=leaking),
        _Case("train", Row("Church bell", "zerolength0", 0, 0), scene, flags=["zero_length_event"]),
    ]


def _bad(seed: int) -> list[_Case]:
    scene = _scene(seed + 950, 1, 9)
    short, portrait = replace(scene, seconds=9.2), replace(scene, size=(120, 160))
    return [
        _Case("train", Row("Cat", "missingmp40", 1, 9), None, "missing_video"),
        _Case("train", Row("Cat", "emptymp4000", 1, 9), scene, "empty_file"),
        _Case("train", Row("Cat", "truncated00", 1, 9), scene, "truncated"),
        _Case("train", Row("Cat", "playlist000", 1, 9), scene, "not_media"),
        _Case("val", Row("Goat", "nosound0000", 1, 9), scene, "no_audio_stream", has_no_audio=True),
        _Case("val", Row("Goat", "silence0000", 1, 9), replace(scene, silent=True), "silent_audio"),
        _Case("val", Row("Goat", "short000000", 1, 9), short),
        _Case("test", Row("Horse", "long0000000", 1, 9), replace(scene, seconds=10.1)),
        _Case("test", Row("Horse", "lateaudio00", 1, 9), scene, late=0.5),
        _Case("test", Row("Horse", "portrait000", 1, 9), portrait),
    ]


def _spoil(folder: Path) -> None:
    (folder / "emptymp4000.mp4").write_bytes(b"")
    cut = folder / "truncated00.mp4"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "playlist000.mp4").write_text("ffconcat version 1.0\nfile silence0000.mp4\n")


def _write_lists(base: Path, cases: list[_Case]) -> dict[str, dict[str, Any]]:
    truth: dict[str, dict[str, Any]] = {}
    lines = [f"{row.label}&{row.video}&good&{row.start}&{row.end}" for row in (case.row for case in cases)]
    (base / "Annotations.txt").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    for split, name in SPLIT_FILES.items():
        rows = [(case, line) for case, line in zip(cases, lines, strict=True) if case.split == split]
        (base / name).write_text("".join(line + "\n" for _, line in rows), encoding="utf-8")
        for number, (case, _) in enumerate(rows):
            beeps = case.scene.beeps if case.scene else ()
            truth[f"ave-{split}-{number:04d}-{case.row.video}"] = {
                "flash": list(case.scene.flashes if case.scene else ()),
                "beep": [beep + case.late for beep in beeps],
                "reason": case.reason,
                "flags": sorted(case.flags),
            }
    return truth
