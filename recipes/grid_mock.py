"""Mock of GRID with generated media: folders of speakers, alignments, and bad cases."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

from avdata.recipes.grid import TICKS_PER_SECOND, WORDS, parse_stem

from avdata.testing import Scene, divide_clips, write_av, write_ground_truth, write_manifest

SPEAKERS = {"train": 3, "val": 9, "test": 8}
"""A speaker of each split of the default scheme."""

COLORS = tuple(WORDS["color"])

WORD_S = 0.3

FIRST_WORD_S = 0.6


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds flash and beep times and the quarantine reason of each clip.

    Flash and beep mark the middle of the color word.
    """
    places = divide_clips(count or 12, len(COLORS))
    truth: dict[str, dict[str, Any]] = {}
    for number, (split, color) in enumerate(places):
        key, facts = _write_clip(out, SPEAKERS[split], _stem(color, number), seed + number)
        truth[key] = facts
    if bad:
        truth |= _write_bad(out, seed + 900)
    write_manifest(out, "grid")
    write_ground_truth(out, truth)


def _stem(color: int, number: int) -> str:
    """Return sentence `number` of a color, each once."""
    letters, digits = "".join(WORDS["letter"]), "".join(WORDS["digit"])
    rest = number // (len(letters) * len(digits))
    return (
        f"{'blps'[rest % 4]}{COLORS[color]}{'abiw'[rest // 4 % 4]}{letters[number % len(letters)]}"
        f"{digits[number // len(letters) % len(digits)]}{'anps'[rest // 16 % 4]}"
    )


def _write_clip(out: Path, speaker: int, stem: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Write a video of three seconds and its alignment; return its key and truth."""
    start = FIRST_WORD_S + 0.05 * random.Random(seed).randrange(8)  # noqa: S311  # content of a mock
    middle = round(start + 1.5 * WORD_S, 3)
    scene = Scene(
        seconds=3.0, flashes=(middle,), beeps=(middle,), seed=seed, fps=Fraction(25), size=(96, 80)
    )  # fmt: skip
    write_av(out / f"s{speaker}" / f"{stem}.mpg", scene, vcodec="mpeg1video", acodec="mp2")
    words = (parse_stem(stem) or {}).values()
    times = [0.0, *(start + WORD_S * number for number in range(len(words) + 1)), 3.0]
    lines = [
        f"{round(begin * TICKS_PER_SECOND)} {round(end * TICKS_PER_SECOND)} {word}"
        for begin, end, word in zip(times[:-1], times[1:], ("sil", *words, "sil"), strict=True)
    ]
    alignment = out / "alignments" / f"s{speaker}" / f"{stem}.align"
    alignment.parent.mkdir(parents=True, exist_ok=True)
    alignment.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"s{speaker}_{stem}", {"flash": [middle], "beep": [middle], "reason": None, "flags": []}


def _write_bad(out: Path, seed: int) -> dict[str, dict[str, Any]]:
    reasons = {"bbaz9n": "no_label", "bgaz9n": "no_label", "braz9n": "empty_file", "bwaz9n": "not_media"}
    truth = {}
    for number, (stem, reason) in enumerate(reasons.items()):
        key, facts = _write_clip(out, SPEAKERS["train"], stem, seed + number)
        truth[key] = {**facts, "reason": reason}
    folder, alignments = out / "s3", out / "alignments" / "s3"
    (alignments / "bbaz9n.align").unlink()
    (alignments / "bgaz9n.align").write_text("0 25000 sil\n25000 30000 bin\n")
    (folder / "braz9n.mpg").write_bytes(b"")
    (folder / "bwaz9n.mpg").write_text("<!doctype html><title>404</title>\n")
    return truth
