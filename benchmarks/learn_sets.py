"""Datasets of `learn.py`: prepared once with avdata, then read into memory with noise or masks."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import avdata
from avdata import Clip, Recipe, SourceError
from snnergy.data import mel_transform, open_split

Hide = Literal["noise", "mask"]

MODALITIES = ("audio", "video", "")

HIDDEN = ("audio", "audio", "video", "video", "")
"""Modality that is hidden in a clip, by the MD5 of its key: each in 40 % of the clips, never both."""

RECORDING = re.compile(r"(\d)_([a-z]+)_(\d+)")

GRID_CONFIG = {
    "select": {"split_by": "sentence"}, "video": {"size": 64},
    "audio": {"n_mels": 64, "hop_length": 320, "layout": "repeat", "flac": True},
}  # fmt: skip

STEPS_AUDIO = {"audio": {"n_mels": 64, "hop_length": 80, "flac": True}}
"""Four steps of 0.16 s, which together have the columns of four repetitions."""

FACE_VIDEO = {"video": {"size": 64, "resize_mode": "face"}}

DIGITS_CONFIG = {
    "audio": {
        "sample_rate": 8000, "n_fft": 256, "hop_length": 160, "n_mels": 32, "layout": "repeat", "flac": True,
    },
    "align": {"window": "start", "seconds": 0.64}, "video": {"size": 24},
}  # fmt: skip


def digit_clips(root: Path, split_by: str) -> list[Clip]:
    """Return the recordings with a handwritten digit each; takes 0 to 9 test, and 10 to 14 validate."""
    del split_by
    clips = []
    for path in sorted((root / "recordings").glob("*.wav")):
        match = RECORDING.fullmatch(path.stem)
        if match is None:
            continue
        digit, speaker, take = match[1], match[2], int(match[3])
        split = "test" if take < 10 else "val" if take < 15 else "train"
        still = root / "stills" / split / f"{path.stem}.png"
        clips.append(Clip(path.stem, digit, f"{speaker}{take}", split, still, path, is_image=True))
    if not clips:
        msg = f"Folder holds no recordings of digits: {root}."
        raise SourceError(msg, hint="Put recordings/ of Jakobovski/free-spoken-digit-dataset into it.")
    return clips


DIGITS = Recipe(
    name="learn-digits", version=1, title="Spoken and handwritten digits", labels=tuple("0123456789"),
    clips=digit_clips, splits={"take": "takes 0-9 test, 10-14 validate"}, default_split="take",
)  # fmt: skip


def write_stills(root: Path, recordings: Path) -> None:
    """Write a handwritten digit of scikit-learn for each recording, and link the recordings beside them.

    Of the images of a digit, every fifth is for test and every fifth for validation.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pools = {}
    for digit in range(10):
        own = images[labels == digit].reshape(-1, 8, 8)
        fifth = np.arange(len(own)) % 5
        pools |= {(digit, "train"): own[fifth < 3], (digit, "val"): own[fifth == 3]}
        pools[digit, "test"] = own[fifth == 4]
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "recordings").exists():
        (root / "recordings").symlink_to(recordings.resolve(), target_is_directory=True)
    for clip in digit_clips(root, "take"):
        assert clip.video is not None
        pool = pools[int(clip.label), clip.split]
        pixels = (pool[_number(clip.key, "image") % len(pool)] * 255 / 16).astype(np.uint8)
        clip.video.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR).save(clip.video)


def _number(key: str, purpose: str) -> int:
    return int(hashlib.md5(f"{purpose} {key}".encode(), usedforsecurity=False).hexdigest()[:15], 16)


def prepare_set(name: str, data: Path, target: Path) -> None:
    """Prepare a dataset of `learn.py`; one that is there is only checked."""
    config: dict[str, Any] = {"audio": {"flac": True}}
    source: Path | None = None
    recipe: str | Recipe = {"xor": "synthetic", "agree": "synthetic-agree"}.get(name, "grid")
    if name == "digits":
        recipe, source, config = DIGITS, target.with_name("digits-source"), DIGITS_CONFIG
        write_stills(source, data / "recordings")
    elif recipe == "grid":
        changes = {"grid-steps": STEPS_AUDIO, "grid-face": FACE_VIDEO}.get(name, {})
        source, config = data / "grid", GRID_CONFIG | changes
    avdata.prepare(recipe, source=source, output=target, config=config, checksums=source is None, workers=0)


@dataclass
class Samples:
    """One split in memory.

    Attributes:
        audio: float32 [N, T, 1, F, L].
        frames: uint8 [N, T, C, H, W].
        label: int64 [N].
        hidden: index into `MODALITIES` of the hidden modality of each sample, 2 for none, int64 [N].
        masked: the hidden modality is masked; otherwise it is noise already.
    """

    audio: Tensor
    frames: Tensor
    label: Tensor
    hidden: Tensor
    masked: bool

    def __len__(self) -> int:
        return len(self.label)


def load_split(folder: Path, split: str, *, hide: Hide | None = None, snr: float | None = None) -> Samples:
    """Read a split into memory.

    Args:
        folder: prepared dataset, with waveforms.
        split: `train`, `val` or `test`.
        hide: replace a modality of most samples by noise, or mark it as masked; None: none is hidden.
        snr: power of the waveform over that of white noise that is added to it, dB; None: none is added.
    """
    data = open_split(folder, split, features="waveform", rank=0, world_size=1)
    mel = mel_transform(data)
    assert mel is not None
    audio, frames, labels, hidden = [], [], [], []
    for batch in data.loader(64, num_workers=0):
        real = len(batch.key) if batch.weight.all() else int((batch.weight > 0).sum())
        assert batch.waveform is not None
        assert batch.frames is not None
        waveform, pictures = batch.waveform[:real].clone(), batch.frames[:real].clone()
        for row, key in enumerate(batch.key[:real]):
            rng = np.random.default_rng(_number(key, "noise"))
            lost = HIDDEN[_number(key, "hidden") % len(HIDDEN)] if hide else ""
            hidden.append(MODALITIES.index(lost))
            if snr is not None or (lost == "audio" and hide == "noise"):
                _add_noise(waveform[row], 0.0 if snr is None else snr, rng, replace=snr is None)
            if lost == "video" and hide == "noise":
                noise = rng.integers(0, 256, pictures[row].shape, dtype=np.uint8)
                pictures[row] = torch.from_numpy(noise)
        audio.append(mel(waveform))
        frames.append(pictures)
        labels.append(batch.label[:real])
    return Samples(
        torch.cat(audio), torch.cat(frames), torch.cat(labels), torch.tensor(hidden), masked=hide == "mask"
    )


def _add_noise(waveform: Tensor, snr: float, rng: np.random.Generator, *, replace: bool) -> None:
    """Add white noise to a waveform [n] in place, or replace it."""
    power = float(waveform.square().mean()) / 10 ** (snr / 10)
    noise = torch.from_numpy(rng.standard_normal(len(waveform), dtype=np.float32)) * power**0.5
    if replace:
        waveform.copy_(noise)
    else:
        waveform.add_(noise)
