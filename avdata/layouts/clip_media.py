"""Media of a stored sample: its frames, and the part of its waveform that is audio and no padding."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from avdata.errors import AvdataError
from avdata.features.audio.kaldi_fbank import kaldi_fbank
from avdata.features.audio.spectrogram import normalize
from avdata.shards.members import decode_frames, decode_metadata, read_members

JPEG_QUALITY = 95
"""Quality of the written images, that of OpenCV's default."""

FBANK = "Kaldi's filterbank of the clip's own audio (25 ms frames every 10 ms, 128 bands)"

NORMALIZATION = "(x + 4.503877) / (2 · 5.141276)"


@dataclass(frozen=True)
class ClipMedia:
    """Decoded media of a sample.

    Attributes:
        members: the sample's members by extension.
        metadata: content of the JSON member.
        shape: of the stored frames, [T, H, W, C]; empty in a dataset of audio.
        rate: sample rate of the waveform, Hz.
    """

    members: Mapping[str, memoryview]
    metadata: Mapping[str, Any]
    shape: Sequence[int]
    rate: int

    @classmethod
    def read(cls, data: bytes, shapes: Mapping[str, Any], rate: int) -> ClipMedia:
        """Return the media of a sample from its bytes and the dataset's `shape`.

        Raises:
            AvdataError: the JSON of the sample is invalid.
        """
        members = read_members(data)
        metadata = decode_metadata(members, shapes["mel"][0])
        return cls(members, metadata, shapes["frames"] or (), rate)

    @cached_property
    def frames(self) -> np.ndarray:
        """All stored frames, uint8 [T, H, W, C]."""
        return decode_frames(self.members, self.shape)

    @property
    def waveform(self) -> np.ndarray:
        """The clip's own audio, int16 [n]."""
        return self.window_waveform[self._span[0] :]

    @cached_property
    def window_waveform(self) -> np.ndarray:
        """Waveform from the window's start to the end of the clip's own audio, int16 [n].

        Raises:
            AvdataError: the waveform is damaged.
        """
        import soundfile  # noqa: PLC0415

        try:
            samples, rate = soundfile.read(io.BytesIO(self.members["flac"]), dtype="int16", always_2d=True)
        except soundfile.SoundFileError as error:
            msg = f"flac cannot be decoded ({getattr(error, 'error_string', error)})"
            raise AvdataError(msg) from error
        if rate != self.rate or samples.shape[1] != 1:
            msg = f"Waveform has {samples.shape[1]} channels at {rate} Hz, expected 1 at {self.rate} Hz."
            raise AvdataError(msg)
        return np.asarray(samples[: self._span[1], 0])

    @property
    def _span(self) -> tuple[int, int]:
        """Samples [first, last) of the window that the clip's own audio covers."""
        span = self.metadata.get("waveform_span")
        if span is None:
            msg = f"Sample {self.metadata.get('key')} does not record which part of its waveform is audio."
            raise AvdataError(msg, hint="Prepare the dataset again with --overwrite.")
        first, last = span
        return int(first), int(last)

    def distinct_frames(self, least: int) -> np.ndarray:
        """Return the frames without repetitions of the last one, but at least `least`; uint8 [n, H, W, C]."""
        times = np.array(self.metadata.get("frame_times", ()))
        last = int(np.flatnonzero(np.diff(times))[-1]) + 1 if np.diff(times).any() else 0
        return self.frames[: max(last + 1, least)]

    def images(self, least: int) -> dict[str, bytes]:
        """Return the distinct frames as JPEG files `frame_00001.jpg` and so on, in time order."""
        return {
            f"frame_{number:05d}.jpg": jpeg(frame)
            for number, frame in enumerate(self.distinct_frames(least), start=1)
        }

    def middle_image(self) -> bytes:
        """Return the frame in the middle of the distinct ones as a JPEG file."""
        frames = self.distinct_frames(1)
        return jpeg(frames[len(frames) // 2])

    def wav(self) -> bytes:
        """Return the waveform without padding as a 16-bit mono WAV file."""
        import soundfile  # noqa: PLC0415

        buffer = io.BytesIO()
        soundfile.write(buffer, self.waveform, self.rate, format="WAV", subtype="PCM_16")
        return buffer.getvalue()

    def fbank(self, rows: int) -> np.ndarray:
        """Return Kaldi's filterbank with AST's normalization, cut or zero-padded to `rows`.

        Padding is added before the normalization, as in OGM-GE's `process_audio.py`.

        Returns:
            float32 [rows, 128].
        """
        values = kaldi_fbank(self.waveform.astype(np.float32) / 32768, self.rate)[:rows]
        return normalize(np.pad(values, ((0, rows - len(values)), (0, 0))), "ast")


def jpeg(frame: np.ndarray) -> bytes:
    """Encode a frame, uint8 [H, W, C]."""
    from PIL import Image  # noqa: PLC0415

    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[2] == 1 else frame))
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as CSV with the line ends of Unix."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
