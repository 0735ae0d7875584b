"""Gallery of a report: samples as images and audio, as many as fit into one page."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import AvdataError, MediaError, error_message
from avdata.reporting.preview_audio import encode_opus, source_waveform
from avdata.reporting.sample_plot import join_mel_steps, visible_frame_times
from avdata.reporting.selection import SelectedRow
from avdata.shards.dataset_files import DatasetFiles
from avdata.shards.members import decode_mel, decode_metadata, read_members
from avdata.shards.sample import StoredSample, parse_sample, read_sample_bytes
from avdata.visualization.images import color_limits, data_uri, frame_images, spectrogram_image

MAX_IMAGE_BYTES = 2_000_000

MAX_AUDIO_BYTES = 1_400_000
"""Limits of all images and all audio of a page, in base64. The rest of its 5 MB is text."""

MAX_FLAC_BYTES = 800_000
"""Limit of the stored FLAC files in the page. Later samples have Opus, a tenth of the size."""

MAX_CARDS = 60

ENLARGED_FRAME_HEIGHT = 192
"""Largest height of a frame in pixels, which a click enlarges."""


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
        audio: data URI of the FLAC or of a preview in Opus, or None.
        is_preview: whether `audio` was made for the report.
        loudness: RMS of the window in dBFS, or None if the dataset stores no audio.
    """

    row: Mapping[str, Any]
    reasons: tuple[str, ...]
    metadata: Mapping[str, Any]
    frames: tuple[tuple[float, float, str], ...]
    spectrogram: str
    frame_times: tuple[float, ...]
    audio: str | None
    is_preview: bool
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
        levels: `color_limits` of each sample's spectrogram.
    """

    samples: int
    problems: tuple[str, ...]
    fps: Mapping[float, int]
    loudness: np.ndarray
    is_dbfs: bool
    levels: Sequence[tuple[float, float]]


def build_gallery(
    files: DatasetFiles,
    info: Mapping[str, Any],
    selected_rows: Sequence[SelectedRow],
    *,
    limits: tuple[float, float] | None,
    source: Path | None = None,
) -> tuple[list[Card], list[str]]:
    """Build the cards of the selected rows that fit into the page.

    Args:
        files: files of the dataset.
        info: content of dataset.json.
        selected_rows: rows of the index, most important first.
        limits: values of the darkest and the brightest color of all spectrograms.
        source: folder of the source files, for previews of the audio.

    Returns:
        The cards, and one line per sample that could not be read.
    """
    cards: list[Card] = []
    problems: list[str] = []
    image_bytes, audio = 0, _AudioBudget(info["config"], source)
    for selected in selected_rows:
        if len(cards) == MAX_CARDS:
            break
        try:
            card = _build_card(files, info, selected, limits, audio)
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            problems.append(f"{selected.row['key']}: {error_message(error)}")
            continue
        image_bytes += len(card.spectrogram) + sum(len(uri) for _, _, uri in card.frames)
        if image_bytes > MAX_IMAGE_BYTES:
            break
        cards.append(card)
    return cards, problems


class _AudioBudget:
    """Audio of the cards, within the limits of the page."""

    def __init__(self, config: Mapping[str, Any], source: Path | None) -> None:
        self._config, self._source = config, source
        self._rate = config["audio"]["sample_rate"]
        self._bytes = 0

    def data_uri(self, sample: StoredSample, flac: bytes | None) -> tuple[str | None, bool]:
        """Return the stored audio or a preview, and whether it is a preview; None if neither fits."""
        if flac is not None and self._bytes + len(flac) * 4 / 3 <= MAX_FLAC_BYTES:
            uri, is_preview = data_uri(flac, "audio/flac"), False
        else:
            waveform = self._waveform(sample, flac)
            if waveform is None:
                return None, False
            uri, is_preview = data_uri(encode_opus(waveform, self._rate), "audio/webm"), True
        if self._bytes + len(uri) > MAX_AUDIO_BYTES:
            return None, False
        self._bytes += len(uri)
        return uri, is_preview

    def _waveform(self, sample: StoredSample, flac: bytes | None) -> np.ndarray | None:
        if flac is not None:
            return _decode_flac(flac)
        if self._source is None:
            return None
        try:
            return source_waveform(self._source, self._config, sample.row, sample.metadata)
        except (AvdataError, MediaError):
            # The stored sample is what the card is about; it is shown without audio.
            return None


def _build_card(
    files: DatasetFiles,
    info: Mapping[str, Any],
    selected: SelectedRow,
    limits: tuple[float, float] | None,
    audio: _AudioBudget,
) -> Card:
    data = _read_verified(files, selected.row)
    sample = parse_sample(info, selected.row, data)
    start, end = selected.row["window_start"], selected.row["window_end"]
    member = read_members(data).get("flac")
    flac = None if member is None else bytes(member)
    uri, is_preview = audio.data_uri(sample, flac)
    frames = [] if sample.frames is None else frame_images(sample.frames, ENLARGED_FRAME_HEIGHT)
    return Card(
        row=selected.row,
        reasons=selected.reasons,
        metadata=sample.metadata,
        frames=tuple(frames),
        spectrogram=spectrogram_image(join_mel_steps(sample), limits),
        frame_times=tuple((time - start) / (end - start) for time in visible_frame_times(sample)),
        audio=uri,
        is_preview=is_preview,
        loudness=None if flac is None else _loudness(flac),
    )


def measure_samples(
    files: DatasetFiles, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> SampleMeasurements:
    """Read samples and measure loudness and frame rates, which the index does not hold.

    Args:
        files: files of the dataset.
        info: content of dataset.json.
        rows: rows of the index.
    """
    problems, loudness, levels = list[str](), list[float](), list[tuple[float, float]]()
    fps: dict[float, int] = {}
    has_audio, shape = bool(info["config"]["audio"]["flac"]), info["shape"]["mel"]
    for row in rows:
        try:
            members = read_members(_read_verified(files, row))
            rate = decode_metadata(members, shape[0]).get("media", {}).get("fps")
            mel = decode_mel(members, shape).astype(np.float32)
            level = _loudness(bytes(members["flac"])) if has_audio else float(mel.mean())
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            problems.append(f"{row['key']}: {error_message(error)}")
            continue
        loudness.append(level)
        levels.append(color_limits(mel))
        if isinstance(rate, int | float) and math.isfinite(rate):
            fps[round(float(rate), 2)] = fps.get(round(float(rate), 2), 0) + 1
    return SampleMeasurements(
        len(levels), tuple(problems), dict(sorted(fps.items())), np.array(loudness), has_audio, levels
    )


def _read_verified(files: DatasetFiles, row: Mapping[str, Any]) -> bytes:
    data = read_sample_bytes(files, row)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        msg = f"checksum mismatch in {row['shard']}"
        raise AvdataError(msg)
    return data


def _decode_flac(flac: bytes) -> np.ndarray:
    import soundfile  # noqa: PLC0415

    waveform, _ = soundfile.read(io.BytesIO(flac), dtype="float32")
    return np.asarray(waveform)


def _loudness(flac: bytes) -> float:
    """Return the RMS of a FLAC file in dBFS, at least -120."""
    return float(10 * np.log10(max(float(np.mean(np.square(_decode_flac(flac)))), 1e-12)))
