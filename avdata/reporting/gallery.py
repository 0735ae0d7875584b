"""The samples of a report as pictures and sound that fit into one page."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import AvdataError, error_message
from avdata.reporting.sample_plot import join_mel_steps, visible_frame_times
from avdata.reporting.selection import SelectedRow
from avdata.shards.reader import read_members
from avdata.shards.sample import parse_sample, read_sample_bytes
from avdata.visualization.images import _uri, frame_images, spectrogram_image

MAX_IMAGE_BYTES = 2_000_000

MAX_AUDIO_BYTES = 2_000_000
"""What pictures and sound may take of a page, in base64; the rest of its 5 MB is text."""

MAX_CARDS = 60


@dataclass(frozen=True)
class Card:
    """One sample of the gallery.

    Attributes:
        row: its row of the index.
        why: why it was picked.
        facts: its JSON.
        frames: data URIs with the share of the axis that each begins at and covers.
        spectrogram: data URI; its width is the window.
        moments: where each frame came on screen, as shares of the window.
        audio: data URI of the FLAC, or None.
        loudness: dBFS of the window's RMS, or None where the set keeps no sound.
    """

    row: Mapping[str, Any]
    why: tuple[str, ...]
    facts: Mapping[str, Any]
    frames: tuple[tuple[float, float, str], ...]
    spectrogram: str
    moments: tuple[float, ...]
    audio: str | None
    loudness: float | None

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return float(self.row["window_end"] - self.row["window_start"])


@dataclass(frozen=True)
class Opened:
    """What was learnt by opening samples: how many were whole, what was wrong, and their measures.

    Attributes:
        whole: samples whose bytes are those the index speaks of.
        problems: what is wrong with the others, a sentence each.
        fps: frames a second of the sources, by value.
        loudness: dBFS of those with sound, else the mean of the stored spectrogram; float64 [n].
        in_dbfs: whether `loudness` is in dBFS.
    """

    whole: int
    problems: tuple[str, ...]
    fps: Mapping[float, int]
    loudness: np.ndarray
    in_dbfs: bool


def build_gallery(
    root: Path, info: Mapping[str, Any], picks: Sequence[SelectedRow]
) -> tuple[list[Card], list[str]]:
    """Cards of the picks that fit, in the order given, and what was wrong with those that cannot be read."""
    cards: list[Card] = []
    problems: list[str] = []
    pictures = sounds = 0
    for pick in picks:
        if len(cards) == MAX_CARDS:
            break
        try:
            card = _card(root, info, pick, sound_left=MAX_AUDIO_BYTES - sounds)
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            problems.append(f"{pick.row['key']}: {error_message(error)}")
            continue
        pictures += len(card.spectrogram) + sum(len(uri) for _, _, uri in card.frames)
        if pictures > MAX_IMAGE_BYTES:
            break
        sounds += len(card.audio or "")
        cards.append(card)
    return cards, problems


def _card(root: Path, info: Mapping[str, Any], pick: SelectedRow, *, sound_left: int) -> Card:
    data = _read_verified(root, pick.row)
    sample = parse_sample(info, pick.row, data)
    start, end = pick.row["window_start"], pick.row["window_end"]
    flac = read_members(data).get("flac")
    audio = None if flac is None else _uri(bytes(flac), "audio/flac")
    return Card(
        row=pick.row,
        why=pick.why,
        facts=sample.metadata,
        frames=tuple(frame_images(sample.frames)),
        spectrogram=spectrogram_image(join_mel_steps(sample)),
        moments=tuple((moment - start) / (end - start) for moment in visible_frame_times(sample)),
        audio=audio if audio and len(audio) <= sound_left else None,
        loudness=None if flac is None else _dbfs(bytes(flac)),
    )


def open_drawn(root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Opened:
    """Open samples for what the index does not tell.

    Args:
        root: the set's folder.
        info: its dataset.json.
        rows: rows of its index.
    """
    import json  # noqa: PLC0415

    whole, problems, levels = 0, list[str](), list[float]()
    fps: dict[float, int] = {}
    keeps_sound = bool(info["config"]["audio"]["flac"])
    for row in rows:
        try:
            members = read_members(_read_verified(root, row))
            rate = json.loads(bytes(members["json"])).get("media", {}).get("fps")
            level = _dbfs(bytes(members["flac"])) if keeps_sound else _mean_level(members)
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            problems.append(f"{row['key']}: {error_message(error)}")
            continue
        whole += 1
        levels.append(level)
        if rate:
            fps[round(float(rate), 2)] = fps.get(round(float(rate), 2), 0) + 1
    return Opened(whole, tuple(problems), dict(sorted(fps.items())), np.array(levels), keeps_sound)


def _read_verified(root: Path, row: Mapping[str, Any]) -> bytes:
    """The bytes of a sample, if they are those the index speaks of."""
    data = read_sample_bytes(root, row)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        msg = f"its bytes in {row['shard']} are not those the index speaks of"
        raise AvdataError(msg)
    return data


def _mean_level(members: Mapping[str, memoryview]) -> float:
    from avdata.shards.reader import decode_mel  # noqa: PLC0415

    return float(decode_mel(members).astype(np.float32).mean())


def _dbfs(flac: bytes) -> float:
    import soundfile  # noqa: PLC0415

    wave, _ = soundfile.read(io.BytesIO(flac), dtype="float32")
    return float(10 * np.log10(max(float(np.mean(np.square(wave))), 1e-12)))
