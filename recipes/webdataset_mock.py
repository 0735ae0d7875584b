"""Mock of a set in WebDataset tars: a video, its separate audio, class and facts of each clip; bad cases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from avdata.testing import Scene, scene_audio, write_av, write_ground_truth, write_manifest

LABELS = ("clap", "knock", "ring")

CLIPS_PER_TAR = 4

EVENT = 1.0
"""Time of the flash and the beep, s."""

Sample = dict[str, bytes]


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds flash and beep times, quarantine reason and flags of each clip."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "classes.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    samples: dict[str, dict[str, Sample]] = {"train": {}, "val": {}, "test": {}}
    for number in range(count or 12):
        split = ("train", "train", "val", "test")[number % 4]
        samples[split][f"{number:06d}"] = _sample(number, split, seed)
    truth = {key: _facts(None) for split in samples.values() for key in split}
    for split, named in samples.items():
        for first in range(0, len(named), CLIPS_PER_TAR):
            part = dict(list(named.items())[first : first + CLIPS_PER_TAR])
            _write_tar(out / f"{split}-{first // CLIPS_PER_TAR:04d}.tar", part)
    if bad:
        truth |= {key: _facts(reason) for key, reason in _write_bad(out, seed).items()}
    write_manifest(out, "webdataset")
    write_ground_truth(out, truth)


def _facts(reason: str | None) -> dict[str, Any]:
    return {"flash": [EVENT], "beep": [EVENT], "reason": reason, "flags": []}


def _sample(number: int, split: str, seed: int) -> Sample:
    """Return the members of a clip by extension."""
    import soundfile  # noqa: PLC0415

    scene = Scene(
        seconds=2.6, flashes=(EVENT,), beeps=(EVENT,), seed=seed * 7_919 + number, fps=Fraction(20),
        size=(160, 120), rate=16_000,
    )  # fmt: skip
    facts = {"label": LABELS[number % len(LABELS)], "speaker": f"s{number % 5}", "split": split}
    with TemporaryDirectory() as folder:
        video, audio = Path(folder, "clip.mp4"), Path(folder, "clip.flac")
        write_av(video, scene, vcodec="mpeg4", acodec="aac")
        soundfile.write(audio, scene_audio(scene), scene.rate)
        return {
            "cls": str(number % len(LABELS)).encode(),
            "flac": audio.read_bytes(),
            "json": json.dumps(facts).encode(),
            "mp4": video.read_bytes(),
        }


def _write_tar(path: Path, samples: Mapping[str, Sample]) -> None:
    from webdataset import TarWriter  # noqa: PLC0415  # imports torch

    with path.open("wb") as stream:
        writer = TarWriter(stream, user="", group="", mtime=0, encoder=False)
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
        writer.close()


def _write_bad(out: Path, seed: int) -> dict[str, str]:
    """Write tars with bad clips; return the reason by clip key."""
    sample = _sample(0, "train", seed + 50)
    cases = {
        "900001": ("no_label", {key: value for key, value in sample.items() if key != "cls"}),
        "900002": ("missing_video", {key: value for key, value in sample.items() if key != "mp4"}),
        "900003": ("not_media", {**sample, "mp4": b"<html>404</html>" * 40}),
        "900004": ("empty_file", {**sample, "flac": b""}),
        "900005": ("truncated", sample),
    }
    path = out / "train-bad.tar"
    _write_tar(path, {key: members for key, (_, members) in cases.items()})
    # The last member is the video of the last clip: cut the tar in its middle.
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size - 10_240 - len(sample["mp4"]) // 2)
    _write_tar(out / "val-bad.tar", {"000000": sample})
    return {key: reason for key, (reason, _) in cases.items()} | {"val-bad_000000": "duplicate_key"}
