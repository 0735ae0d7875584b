"""Encoding of a sample's frames and waveform as MP4."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.layouts.clip_media import ClipMedia

if TYPE_CHECKING:
    from av.container import OutputContainer

QUALITY = "2"
"""Quantizer of MPEG-4: visually lossless."""

AUDIO_FRAME = 1024
"""Samples of a frame of AAC."""


def encode_mp4(media: ClipMedia) -> bytes:
    """Return all frames as MPEG-4 at their own rate, with the waveform of the window as AAC if there is one.

    Both start with the window. Equal samples give equal bytes with the same version of PyAV. H.264 does not:
    the bytes of libx264 differ in one of some hundred files.
    """
    import av  # noqa: PLC0415

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # All streams must be added before the first packet is written.
        options = {"qmin": QUALITY, "qmax": QUALITY}
        video: Any = container.add_stream("mpeg4", rate=_frame_rate(media), options=options)
        audio: Any = None
        if "flac" in media.members:
            audio = container.add_stream("aac", rate=media.rate, layout="mono")
            audio.codec_context.flags |= av.codec.context.Flags.bitexact
        _encode_video(container, video, media.frames)
        if audio is not None:
            _encode_audio(container, audio, media.window_waveform, media.rate)
    return buffer.getvalue()


def _frame_rate(media: ClipMedia) -> Fraction:
    times = media.metadata["step_times"]
    return Fraction(1 / (times[1] - times[0])).limit_denominator(1000) if len(times) > 1 else Fraction(1)


def _encode_video(container: OutputContainer, stream: Any, frames: np.ndarray) -> None:
    import av  # noqa: PLC0415

    # Subsampled colors require an even size.
    height, width = (size // 2 * 2 for size in frames.shape[1:3])
    stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    for number, pixels in enumerate(frames[:, :height, :width]):
        rgb = np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3)))
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.pts, frame.time_base = number, 1 / stream.average_rate
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _encode_audio(container: OutputContainer, stream: Any, samples: np.ndarray, rate: int) -> None:
    import av  # noqa: PLC0415

    for start in range(0, len(samples), AUDIO_FRAME):
        block = np.ascontiguousarray(samples[None, start : start + AUDIO_FRAME])
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
