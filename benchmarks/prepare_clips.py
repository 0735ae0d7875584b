"""Generated clips for `prepare.py`: like those of CREMA-D and of AVE, with grain."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np


def make_clips(folder: Path, kind: str, count: int) -> None:
    """Write `count` clips of a kind; three differ, the rest are copies under other names."""
    from avdata.testing.media import Scene, scene_audio, scene_frame, write_av, write_wav

    folder.mkdir(parents=True)
    for number in range(count):
        name = folder / f"{number:04d}.{'flv' if kind == 'cremad' else 'mp4'}"
        if number >= 3:
            source = folder / f"{number % 3:04d}{name.suffix}"
            shutil.copy(source, name)
            if kind == "cremad":
                shutil.copy(source.with_suffix(".wav"), name.with_suffix(".wav"))
            continue
        if kind == "cremad":
            scene = Scene(2.5, flashes=(1.0,), beeps=(1.0,), seed=number)
        else:
            scene = Scene(10.0, (5.0,), (5.0,), number, Fraction(30), (640, 360), channels=2)
        dice = np.random.default_rng(number)
        grain = dice.integers(0, 60, (*scene.size[::-1], 3), dtype=np.uint8) // 4 * 4
        pixels = [
            np.clip(scene_frame(scene, n).astype(np.int16) + np.roll(grain, n, 1), 0, 255).astype(np.uint8)
            for n in range(scene.frames)
        ]
        if kind == "cremad":
            write_av(name, scene, pixels=pixels)
            write_wav(name.with_suffix(".wav"), scene_audio(scene, 16_000), 16_000)
        else:
            options = {"preset": "medium", "crf": "28"}
            write_av(
                name, scene, vcodec="libx264", acodec="aac", pixels=pixels, options=options, keyframes=150
            )
