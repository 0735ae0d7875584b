"""Mock of Kinetics-Sounds with generated media: folders of classes, lists of OGM-GE, and bad cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from avdata.recipes.kinetics_sounds import LABELS, LISTS, carve_split

from avdata.testing import Scene, divide_clips, write_av, write_ground_truth, write_manifest

FAST = {"preset": "ultrafast"}


@dataclass
class _Case:
    split: str
    video: str
    start: int
    label: int
    scene: Scene | None
    reason: str | None = None


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds flash and beep times, and the quarantine reason of each clip."""
    places = divide_clips(count or 12, len(LABELS))
    cases = [_plain(*place, number, seed) for number, place in enumerate(places)]
    if bad:
        scene = _scene(seed + 900)
        cases += [
            _Case("train", "vanished000", 8, 0, None, "missing_video"),
            _Case("test", "silent00000", 3, 1, replace(scene, silent=True, beeps=()), "silent_audio"),
        ]
    lines: dict[str, list[str]] = {split: [] for split in LISTS}
    for case in cases:
        published = "test" if case.split == "test" else "train"
        stem = f"{case.video}_{case.start:06d}_{case.start + 10:06d}"
        # As published: the lists of train and test name their clips differently.
        name = stem if published == "train" else f"{case.video}_{case.start}"
        lines[published].append(f"{name},10,{case.label}")
        if case.scene is not None:
            path = out / published / LABELS[case.label] / f"{stem}.mp4"
            write_av(path, case.scene, vcodec="libx264", acodec="aac", options=FAST)
    for split, name in LISTS.items():
        (out / "ogmge").mkdir(parents=True, exist_ok=True)
        (out / "ogmge" / name).write_bytes("".join(f"{line}\r\n" for line in lines[split]).encode())
    write_manifest(out, "kinetics-sounds")
    write_ground_truth(out, {_key(case): _truth(case) for case in cases})


def _key(case: _Case) -> str:
    return f"ks-{case.video}_{case.start:06d}"


def _truth(case: _Case) -> dict[str, object]:
    flashes, beeps = (case.scene.flashes, case.scene.beeps) if case.scene else ((), ())
    return {"flash": list(flashes), "beep": list(beeps), "reason": case.reason, "flags": []}


def _scene(seed: int) -> Scene:
    """Return a scene of ten seconds with one flash and beep."""
    when = 1.5 + seed % 8
    return Scene(
        seconds=10.0, flashes=(when,), beeps=(when,), seed=seed, fps=Fraction(10), size=(64, 48), rate=16_000
    )


def _plain(split: str, label: int, number: int, seed: int) -> _Case:
    published = "test" if split == "test" else "train"
    names = (f"{'-_ab'[number % 4]}{number:06d}{attempt:04d}" for attempt in range(1_000))
    video = next(name for name in names if carve_split(published, name) == split)
    return _Case(split, video, 10 * (number % 40), label, _scene(seed + number))
