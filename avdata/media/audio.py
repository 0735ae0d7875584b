"""Decode audio tracks to mono samples on the container's time axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio_timeline import AudioTimeline, check_audio_packets, too_long
from avdata.media.container import audio_stream, open_container
from avdata.media.decoders import DECODERS
from avdata.media.downmix import Channel, Downmixer
from avdata.media.formats import detect_format
from avdata.media.integrity import check_audio_length, check_not_truncated
from avdata.media.types import AudioTrack

MAX_BUFFERED_FRAMES = 256
"""Decoded frames to convert at once: converting one alone takes numpy as long as decoding it."""


class AudioTrackDecoder:
    """Decoder of one audio track, packet by packet; `finish` returns the audio.

    Encoder priming and edit lists are applied, and samples placed by their timestamps.

    Attributes:
        stream: PyAV's audio stream.
    """

    def __init__(self, path: Path, stream: Any, quality: QualityConfig, channel: Channel = "mix") -> None:
        self.stream = stream
        self._name, self._quality = path.name, quality
        self._downmixer = Downmixer(channel)
        self._num_channels = 0
        self._chunks: list[np.ndarray] = []
        self._buffered: list[Any] = []
        self._buffered_format: tuple[str, int] | None = None
        self._timeline = AudioTimeline(path.name, quality.max_seconds)
        self._num_packets = self._num_corrupt = 0

    def add(self, packet: Any) -> None:
        """Decode a packet; packets that fail to decode are counted.

        Raises:
            MediaError: TOO_LONG.
        """
        import av  # noqa: PLC0415

        self._num_packets += 1
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self._num_corrupt += 1
            return
        for frame in frames:
            self._add_frame(frame)

    def _add_frame(self, frame: Any) -> None:
        self._timeline.add(frame.time, frame.samples, frame.sample_rate)
        frame_format = frame.format.name, frame.layout.nb_channels
        self._num_channels = self._num_channels or frame_format[1]
        if frame_format != self._buffered_format or len(self._buffered) == MAX_BUFFERED_FRAMES:
            self._convert_buffered()
            self._buffered_format = frame_format
        self._buffered.append(frame)

    def _convert_buffered(self) -> None:
        if self._buffered and self._buffered_format is not None:
            channels = _to_channels(self._buffered, *self._buffered_format)
            self._chunks.append(self._downmixer.mix(channels))
            self._buffered = []

    def finish(self) -> AudioTrack:
        """Return the audio of all packets.

        Raises:
            MediaError: NO_AUDIO_STREAM or UNDECODABLE_AUDIO if nothing could be decoded, CORRUPT_AUDIO if too
                little could.
        """
        self._convert_buffered()
        if not self._chunks:
            detail = f"{self._name}: no audio sample could be decoded"
            if self._num_packets:
                raise MediaError(QuarantineReason.UNDECODABLE_AUDIO, detail)
            raise MediaError(QuarantineReason.NO_AUDIO_STREAM, detail)
        check_audio_packets(self._name, self._num_corrupt, self._num_packets, self._quality)
        metadata = {
            "audio_codec": self.stream.codec_context.name,
            "audio_rate": self._timeline.rate,
            "audio_channels": self._num_channels,
        }
        samples, start, flags = self._timeline.place(np.concatenate(self._chunks))
        return AudioTrack(samples, self._timeline.rate, start, metadata, (*flags, *self._downmixer.flags()))


PCM_CODECS = {
    "PCM_U8": "pcm_u8", "PCM_16": "pcm_s16le", "PCM_24": "pcm_s24le", "PCM_32": "pcm_s32le",
    "FLOAT": "pcm_f32le", "DOUBLE": "pcm_f64le",
}  # fmt: skip
"""libsndfile's names of uncompressed WAV subtypes, and ffmpeg's."""


def decode_audio(
    path: Path, quality: QualityConfig, *, decoder: str = "pyav", channel: Channel = "mix"
) -> AudioTrack:
    """Decode a file's default audio track to mono.

    libsndfile reads uncompressed WAV, with every decoder.

    Args:
        path: an audio or video file.
        quality: limits.
        decoder: value of `video.decoder`. PyAV decodes the audio for decoders of video only.
        channel: value of `audio.channel`.

    Raises:
        MediaError: NO_AUDIO_STREAM, UNDECODABLE_AUDIO, CORRUPT_AUDIO, TOO_LONG, UNREADABLE, TRUNCATED,
            TIMEOUT or an error of `detect_format`.
    """
    name = detect_format(path)
    if name == "wav" and (track := _read_wav(path, quality, channel)) is not None:
        return track
    with open_container(path, quality) as container:
        if DECODERS[decoder].decodes_audio:
            stream = audio_stream(container, path, any_codec=True)
            track = DECODERS[decoder].decode_audio(path, quality, stream.index, channel)
        else:
            track_decoder = AudioTrackDecoder(path, audio_stream(container, path), quality, channel)
            for packet in container.demux(track_decoder.stream):
                track_decoder.add(packet)
            track = track_decoder.finish()
    check_audio_length(path, name, track)
    return track


def _read_wav(path: Path, quality: QualityConfig, channel: Channel) -> AudioTrack | None:
    """Read an uncompressed WAV with libsndfile; return None for any other file.

    libsndfile is 10x faster than ffmpeg. The values equal ffmpeg's bit for bit, and the audio starts at 0.
    """
    import soundfile  # noqa: PLC0415

    check_not_truncated(path, "wav")
    try:
        with soundfile.SoundFile(path) as file:
            if file.format not in {"WAV", "WAVEX"} or file.subtype not in PCM_CODECS or not file.frames:
                return None
            if file.frames > quality.max_seconds * file.samplerate:
                raise too_long(path.name, quality.max_seconds)
            samples = file.read(dtype="float32", always_2d=True)
            metadata = {
                "audio_codec": PCM_CODECS[file.subtype],
                "audio_rate": file.samplerate,
                "audio_channels": file.channels,
            }
            downmixer = Downmixer(channel)
            mono = downmixer.mix(samples.T)
            return AudioTrack(mono, file.samplerate, 0.0, metadata, downmixer.flags())
    except soundfile.LibsndfileError:
        return None


SAMPLE_TYPES = {
    "u8": np.uint8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "flt": np.float32, "dbl": np.float64,
}  # fmt: skip
"""ffmpeg's names of sample formats; those of planar formats end with a p."""


def _to_channels(frames: Sequence[Any], sample_format: str, num_channels: int) -> list[np.ndarray]:
    """Return the channels of successive PyAV frames of one sample format, each float32 [n] in [-1, 1]."""
    dtype = np.dtype(SAMPLE_TYPES[sample_format.removesuffix("p")])
    planar = sample_format.endswith("p")
    width = dtype.itemsize * (1 if planar else num_channels)
    buffers = [(frame.planes, frame.samples * width) for frame in frames]
    planes = [
        # A plane may be longer than its samples.
        np.frombuffer(b"".join([memoryview(planes[index])[:size] for planes, size in buffers]), dtype)
        for index in range(num_channels if planar else 1)
    ]
    channels = planes if planar else planes[0].reshape(-1, num_channels).T
    return [_to_float(values) for values in channels]


def _to_float(values: np.ndarray) -> np.ndarray:
    """Convert samples of any type to float32 in [-1, 1]."""
    if values.dtype == np.float32:
        return values
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float32) / float(-np.iinfo(values.dtype).min)
    return values.astype(np.float32)
