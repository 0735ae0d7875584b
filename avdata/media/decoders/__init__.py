"""Video decoders by value of `video.decoder`; each package is imported on first use."""

from __future__ import annotations

from avdata.media.decoders.base import VideoDecoder

DECODERS = {
    decoder.name: decoder
    for decoder in (
        VideoDecoder(
            name="pyav",
            package="av",
            module="av",
            extra=None,
            probe="import av; av.open",
            use="opens every container",
            advice="pip install --upgrade av",
            required=True,
            reuses_packets=True,
        ),
        VideoDecoder(
            name="decord",
            package="decord",
            module="decord",
            extra=None,
            probe="import decord; decord.VideoReader",
            use="video.decoder=decord only",
            advice="it has wheels for Linux and Windows on x86-64 only; video.decoder=pyav does without",
            unsupported_codecs=frozenset({"av1"}),
            unsupported_containers=frozenset({"mpeg", "mpegts", "nut"}),
        ),
        VideoDecoder(
            name="ffmpeg",
            package="ffmpeg-python",
            module="ffmpeg",
            extra=None,
            probe="import ffmpeg; ffmpeg.compile",
            use="video.decoder=ffmpeg only",
            advice="pip install --upgrade ffmpeg-python",
            program="ffmpeg",
            decodes_audio=True,
        ),
    )
}
