"""Flash and beep through every container: how far apart they come out, and who decodes it how fast.

    python benchmarks/sync.py

One row a case: beep in the mel minus flash in the frames, less the true delay; the share of what is allowed,
half a video frame; milliseconds for eight frames by PyAV and by decord, whole files opened each time, best of
five; how far decord's frames are from PyAV's, mean of 255; and milliseconds by torchcodec where it loads,
that is beside the machine's own ffmpeg libraries. Decord is timed only where it shows the right frames;
torchcodec shows them where packets have a pts. Both make colors the quick way, 1 to 2 of 255 too dark;
neither marks damage.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.media.decoders import DECODERS
from avdata.media.video import read_frame_times, read_frames
from avdata.testing.reference_clips import REFERENCE_CLIPS, onsets, tolerance, video_codec

QUALITY = QualityConfig()


def best(function: Callable[[], object], rounds: int = 5) -> float:
    """Milliseconds of CPU, the least of some rounds."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        took.append(time.process_time() - began)
    return min(took) * 1e3


def torchcodec() -> Callable[[Path, list[float]], object] | None:
    """Frames by torchcodec, one thread; None where it does not load."""
    try:
        from torchcodec.decoders import VideoDecoder

        # Its libraries load with the first use.
        VideoDecoder(b"")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ImportError) or "Could not load" in str(error):
            return None

    def decode(path: Path, moments: list[float]) -> object:
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
        facts = decoder.metadata
        first, last = facts.begin_stream_seconds, facts.end_stream_seconds - 1e-4
        return decoder.get_frames_played_at([min(max(moment, first), last) for moment in moments])

    return decode


def main() -> None:
    decodes = torchcodec()
    moments = [0.15 + 0.3 * step for step in range(8)]
    decord, worst = DECODERS["decord"], 0.0
    fastest: dict[str, int] = {}
    head = ("true ms", "found ms", "of allowed", "pyav ms", "decord ms", "apart", " torchcodec ms")
    print(f"{'case':18}" + "".join(f"{word:>12}" for word in head))
    with tempfile.TemporaryDirectory() as folder:
        for name, case in REFERENCE_CLIPS.items():
            clip = case.make(Path(folder), name)
            beep, flash = onsets(clip)
            share = abs(beep - flash - case.delay) / tolerance()
            worst = max(worst, share)
            ours = best(lambda video=clip.video: read_frames(video, moments, QUALITY))  # type: ignore[misc]
            theirs, apart, winner, took = "-", "no decoder", "pyav", float("inf")
            clock = read_frame_times(clip.video, QUALITY)
            supported = clock.metadata["container"] not in decord.unsupported_containers
            if supported and video_codec(clip.video) not in decord.unsupported_codecs:
                a = read_frames(clip.video, moments, QUALITY)
                b = decord.frames_at(clip.video, clock, moments)
                took = best(lambda video=clip.video, clock=clock: decord.frames_at(video, clock, moments))  # type: ignore[misc]
                gaps = [np.abs(x.pixels.astype(int) - y.pixels).mean() for x, y in zip(a, b, strict=True)]
                theirs, apart = f"{took:.1f}", f"{max(gaps):.2f}"
                if took < ours:
                    winner = "decord"
            codec = "-"
            if decodes:
                taken = best(lambda video=clip.video: decodes(video, moments))  # type: ignore[misc]
                codec = f"{taken:.1f}"
                if taken < min(ours, took):
                    winner = "torchcodec"
            fastest[winner] = fastest.get(winner, 0) + 1
            found = (beep - flash) * 1e3
            print(
                f"{name:18}{case.delay * 1e3:12.1f}{found:12.1f}{share:12.0%}{ours:12.1f}"
                f"{theirs:>12}{apart:>12}{codec:>14}"
            )
    print("\nfastest, colors aside: " + ", ".join(f"{k} {v}" for k, v in sorted(fastest.items())))
    print(f"worst: {worst:.0%} of the {tolerance() * 1e3:.0f} ms allowed")
    sys.exit(worst > 1)


if __name__ == "__main__":
    main()
