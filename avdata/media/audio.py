"""A sound track as it is decoded packet by packet: mono samples on the container's axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.container import detect_format, open_container
from avdata.media.integrity import check_not_truncated
from avdata.media.types import AudioTrack

MIN_GAP_S = 0.05
"""Seconds of missing timestamps in a sound track that count as a hole, and are filled with silence."""

MAX_BUFFERED_FRAMES = 256
"""Decoded frames that are made samples of at once: a film of 2.5 s has a hundred, and numpy takes as long
over each as the decoder."""


class AudioTrackDecoder:
    """Collects a track's packets; `finish` gives its sound, priming, edit lists and late starts honoured."""

    def __init__(self, path: Path, stream: Any, quality: QualityConfig) -> None:
        self._name, self._stream, self._quality = path.name, stream, quality
        self._rate = int(stream.rate)
        self._pieces: list[np.ndarray] = []
        self._held: list[Any] = []
        self._kind: tuple[str, int] | None = None
        self._count = 0
        self._start: float | None = None
        self._packets = self._lost = 0

    def add(self, packet: Any) -> None:
        """Decode a packet; what cannot be decoded is counted.

        Raises:
            MediaError: TOO_LONG.
        """
        import av  # noqa: PLC0415

        self._packets += 1
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self._lost += 1
            return
        for frame in frames:
            self._add_frame(frame)

    def _add_frame(self, frame: Any) -> None:
        longest = self._quality.max_seconds
        if self._start is None:
            self._start = 0.0 if frame.time is None else float(frame.time)
        elif (
            frame.time is not None
            and (hole := frame.time - self._start - self._count / self._rate) > MIN_GAP_S
        ):
            if hole > longest:
                raise MediaError(
                    QuarantineReason.TOO_LONG, f"{self._name}: a hole of {hole:.0f} s in the sound"
                )
            self._convert()
            self._pieces.append(np.zeros(round(hole * self._rate), np.float32))
            self._count += len(self._pieces[-1])
        kind = frame.format.name, frame.layout.nb_channels
        if kind != self._kind or len(self._held) == MAX_BUFFERED_FRAMES:
            self._convert()
            self._kind = kind
        self._held.append(frame)
        self._count += frame.samples
        if self._count > longest * self._rate:
            raise MediaError(QuarantineReason.TOO_LONG, f"{self._name}: sound longer than {longest:g} s")

    def _convert(self) -> None:
        """Make samples of the frames that are held."""
        if self._held and self._kind is not None:
            self._pieces.append(_mono(self._held, *self._kind))
            self._held = []

    def finish(self) -> AudioTrack:
        """The whole sound.

        Raises:
            MediaError: NO_AUDIO_STREAM, when nothing could be decoded; CORRUPT_AUDIO, when too little could.
        """
        self._convert()
        if self._start is None:
            detail = f"{self._name}: not one sample of sound could be decoded"
            raise MediaError(QuarantineReason.NO_AUDIO_STREAM, detail)
        # The first packet of a stream that was cut out of another one often lacks what it refers to.
        if self._lost > max(1, self._quality.max_corrupt_audio * self._packets):
            detail = f"{self._name}: {self._lost} of {self._packets} packets"
            raise MediaError(QuarantineReason.CORRUPT_AUDIO, detail)
        facts = {
            "audio_codec": self._stream.codec_context.name,
            "audio_rate": self._rate,
            "audio_channels": int(self._stream.channels),
        }
        return AudioTrack(np.concatenate(self._pieces), self._rate, self._start, facts)


PCM_CODECS = {
    "PCM_U8": "pcm_u8", "PCM_16": "pcm_s16le", "PCM_24": "pcm_s24le", "PCM_32": "pcm_s32le",
    "FLOAT": "pcm_f32le", "DOUBLE": "pcm_f64le",
}  # fmt: skip
"""libsndfile's names of what a WAV can hold uncompressed, and ffmpeg's."""


def decode_audio(path: Path, quality: QualityConfig) -> AudioTrack:
    """Decode a file's first sound track to mono.

    Raises:
        MediaError: NO_AUDIO_STREAM, CORRUPT_AUDIO, TOO_LONG, UNREADABLE, TRUNCATED or what `detect_format`
        finds.
    """
    if detect_format(path) == "wav" and (plain := _read_wav(path, quality)) is not None:
        return plain
    with open_container(path, quality) as container:
        if not container.streams.audio:
            raise MediaError(QuarantineReason.NO_AUDIO_STREAM, f"{path.name} holds no sound")
        track = AudioTrackDecoder(path, container.streams.audio[0], quality)
        for packet in container.demux(container.streams.audio[0]):
            track.add(packet)
        return track.finish()


def _read_wav(path: Path, quality: QualityConfig) -> AudioTrack | None:
    """A WAV without compression, by libsndfile, which takes a tenth of the time; None for any other.

    Its values are those of ffmpeg, bit for bit, and such a file starts at 0.
    """
    import soundfile  # noqa: PLC0415

    check_not_truncated(path, "wav")
    try:
        with soundfile.SoundFile(path) as file:
            if file.format not in {"WAV", "WAVEX"} or file.subtype not in PCM_CODECS or not file.frames:
                return None
            if file.frames > quality.max_seconds * file.samplerate:
                detail = f"{path.name}: sound longer than {quality.max_seconds:g} s"
                raise MediaError(QuarantineReason.TOO_LONG, detail)
            samples = file.read(dtype="float32", always_2d=True)
            facts = {
                "audio_codec": PCM_CODECS[file.subtype],
                "audio_rate": file.samplerate,
                "audio_channels": file.channels,
            }
            return AudioTrack(_downmix(samples.T), file.samplerate, 0.0, facts)
    except soundfile.LibsndfileError:
        return None


def _downmix(channels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The mean of the channels, float32 [C, n] to [n], summed in their order."""
    if len(channels) == 1:
        return channels[0]
    total = channels[0] + channels[1]
    for channel in channels[2:]:
        total += channel
    total /= np.float32(len(channels))
    return np.asarray(total)


SAMPLE_TYPES = {
    "u8": np.uint8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "flt": np.float32, "dbl": np.float64,
}  # fmt: skip
"""ffmpeg's names of sample formats; those of planar ones end with a p."""


def _mono(frames: Sequence[Any], name: str, count: int) -> np.ndarray:
    """The mean of the channels of successive sound frames, float32 in [-1, 1].

    Args:
        frames: PyAV's, all of one kind.
        name: of their sample format; planar ones have a plane a channel.
        count: of their channels.
    """
    kind = np.dtype(SAMPLE_TYPES[name.removesuffix("p")])
    planar = name.endswith("p")
    width = kind.itemsize * (1 if planar else count)
    held = [(frame.planes, frame.samples * width) for frame in frames]
    joined = [
        # A plane may be longer than its samples.
        np.frombuffer(b"".join([memoryview(planes[place])[:size] for planes, size in held]), kind)
        for place in range(count if planar else 1)
    ]
    return _downmix([_to_float(values) for values in (joined if planar else joined[0].reshape(-1, count).T)])


def _to_float(values: np.ndarray) -> np.ndarray:
    """Samples of any type as float32 in [-1, 1]."""
    if values.dtype == np.float32:
        return values
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float32) / float(-np.iinfo(values.dtype).min)
    return values.astype(np.float32)
