"""Gallery of a report: samples as images and audio, as many as fit into one page."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import AvdataError, error_message
from avdata.reporting.sample_plot import join_mel_steps, visible_frame_times
from avdata.reporting.selection import SelectedRow
from avdata.shards.reader import decode_mel, read_members
from avdata.shards.sample import parse_sample, read_sample_bytes
from avdata.visualization.images import data_uri, frame_images, spectrogram_image

MAX_IMAGE_BYTES = 2_000_000

MAX_AUDIO_BYTES = 2_000_000
"""Limits of all images and all audio of a page, in base64. The rest of its 5 MB is text."""

MAX_CARDS = 60


@dataclass(frozen=True)
class Card:
    """One sample of the gallery.

    Attributes:
        row: row of the index.
        reasons: reasons of its selection.
        metadata: content of the sample's JSON member.
        frames: (start, width, data URI) of each image, with start and width as fractions of the window.
        spectrogram: data URI; its width is the window.
        frame_times: presentation time of each frame, as a fraction of the window.
        audio: data URI of the FLAC, or None.
        loudness: RMS of the window in dBFS, or None if the dataset stores no audio.
    """

    row: Mapping[str, Any]
    reasons: tuple[str, ...]
    metadata: Mapping[str, Any]
    frames: tuple[tuple[float, float, str], ...]
    spectrogram: str
    frame_times: tuple[float, ...]
    audio: str | None
    loudness: float | None

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return float(self.row["window_end"] - self.row["window_start"])


@dataclass(frozen=True)
class SampleMeasurements:
    """Result of `measure_samples`.

    Attributes:
        samples: number of samples read, whose checksums match the index.
        problems: one line per sample that could not be read.
        fps: number of samples by frame rate of the source video.
        loudness: dBFS of each sample, or the mean of its spectrogram if no audio is stored; float64 [n].
        is_dbfs: whether `loudness` is in dBFS.
    """

    samples: int
    problems: tuple[str, ...]
    fps: Mapping[float, int]
    loudness: np.ndarray
    is_dbfs: bool


def build_gallery(
    root: Path, info: Mapping[str, Any], selected_rows: Sequence[SelectedRow]
) -> tuple[list[Card], list[str]]:
    """Build the cards of the selected rows that fit into the page.

    Args:
        root: folder of the dataset.
        info: content of dataset.json.
        selected_rows: rows of the index, most important first.

    Returns:
        The cards, and one line per sample that could not be read.
    """
    cards: list[Card] = []
    problems: list[str] = []
    image_bytes = audio_bytes = 0
    for selected in selected_rows:
        if len(cards) == MAX_CARDS:
            break
        try:
            card = _build_card(root, info, selected, max_audio_bytes=MAX_AUDIO_BYTES - audio_bytes)
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            problems.append(f"{selected.row['key']}: {error_message(error)}")
            continue
        image_bytes += len(card.spectrogram) + sum(len(uri) for _, _, uri in card.frames)
        if image_bytes > MAX_IMAGE_BYTES:
            break
        audio_bytes += len(card.audio or "")
        cards.append(card)
    return cards, problems


def _build_card(root: Path, info: Mapping[str, Any], selected: SelectedRow, *, max_audio_bytes: int) -> Card:
    data = _read_verified(root, selected.row)
    sample = parse_sample(info, selected.row, data)
    start, end = selected.row["window_start"], selected.row["window_end"]
    flac = read_members(data).get("flac")
    audio = None if flac is None else data_uri(bytes(flac), "audio/flac")
    return Card(
        row=selected.row,
        reasons=selected.reasons,
        metadata=sample.metadata,
        frames=() if sample.frames is None else tuple(frame_images(sample.frames)),
        spectrogram=spectrogram_image(join_mel_steps(sample)),
        frame_times=tuple((time - start) / (end - start) for time in visible_frame_times(sample)),
        audio=audio if audio and len(audio) <= max_audio_bytes else None,
        loudness=None if flac is None else _loudness(bytes(flac)),
    )


def measure_samples(
    root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> SampleMeasurements:
    """Read samples and measure loudness and frame rates, which the index does not hold.

    Args:
        root: folder of the dataset.
        info: content of dataset.json.
        rows: rows of the index.
    """
    problems, levels = list[str](), list[float]()
    fps: dict[float, int] = {}
    has_audio = bool(info["config"]["audio"]["flac"])
    for row in rows:
        try:
            members = read_members(_read_verified(root, row))
            rate = json.loads(bytes(members["json"])).get("media", {}).get("fps")
            level = _loudness(bytes(members["flac"])) if has_audio else _mean_level(members)
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            problems.append(f"{row['key']}: {error_message(error)}")
            continue
        levels.append(level)
        if rate:
            fps[round(float(rate), 2)] = fps.get(round(float(rate), 2), 0) + 1
    return SampleMeasurements(
        len(levels), tuple(problems), dict(sorted(fps.items())), np.array(levels), has_audio
    )


def _read_verified(root: Path, row: Mapping[str, Any]) -> bytes:
    data = read_sample_bytes(root, row)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        msg = f"checksum mismatch in {row['shard']}"
        raise AvdataError(msg)
    return data


def _mean_level(members: Mapping[str, memoryview]) -> float:
    return float(decode_mel(members).astype(np.float32).mean())


def _loudness(flac: bytes) -> float:
    """Return the RMS of a FLAC file in dBFS, at least -120."""
    import soundfile  # noqa: PLC0415

    waveform, _ = soundfile.read(io.BytesIO(flac), dtype="float32")
    return float(10 * np.log10(max(float(np.mean(np.square(waveform))), 1e-12)))
