"""Synchronization of audio and video through every container, and the time of the decoders.

    python benchmarks/sync.py

One row per case: the onset of the beep in the mel minus that of the flash in the frames, less the true delay;
the share of the tolerance, half a video frame; CPU milliseconds for eight frames by PyAV and by decord, each
opening the file, best of five; the mean difference of decord's frames from PyAV's, of 255; and milliseconds
by torchcodec where it can be loaded, which needs the system's ffmpeg libraries. Decord is timed only where
it returns the right frames; torchcodec does where packets have a pts. Both convert colors the fast way, 1 to
2 of 255 too dark; neither marks damage.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from claims import Claim, at_most, main, make_parser

from avdata.config.schema import QualityConfig
from avdata.media.decoders import DECODERS
from avdata.media.video import read_frame_times, read_frames
from avdata.testing.reference_clips import REFERENCE_CLIPS, onsets, tolerance, video_codec

QUALITY = QualityConfig()


def best(function: Callable[[], object], rounds: int) -> float:
    """Return the least CPU milliseconds of some rounds."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        took.append(time.process_time() - began)
    return min(took) * 1e3


def torchcodec() -> Callable[[Path, list[float]], object] | None:
    """Return a decoder by torchcodec with one thread, or None where it cannot be loaded."""
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


def measure(options: argparse.Namespace) -> list[Claim]:
    decodes = torchcodec()
    moments = [0.15 + 0.3 * step for step in range(8)]
    decord, worst = DECODERS["decord"], 0.0
    rounds = 1 if options.quick else 5
    fastest: Counter[str] = Counter()
    head = ("true ms", "measured ms", "of allowed", "pyav ms", "decord ms", "difference", " torchcodec ms")
    print(f"{'case':18}" + "".join(f"{word:>12}" for word in head))
    with tempfile.TemporaryDirectory() as folder:
        for name, case in REFERENCE_CLIPS.items():
            clip = case.make(Path(folder), name)
            video = clip.video
            beep, flash = onsets(clip)
            share = abs(beep - flash - case.delay) / tolerance()
            worst = max(worst, share)
            times = {"pyav": best(partial(read_frames, video, moments, QUALITY), rounds)}
            difference = "no decoder"
            clock = read_frame_times(video, QUALITY)
            supported = clock.metadata["container"] not in decord.unsupported_containers
            if supported and video_codec(video) not in decord.unsupported_codecs:
                a = read_frames(video, moments, QUALITY)
                b = decord.frames_at(video, clock, moments)
                times["decord"] = best(partial(decord.frames_at, video, clock, moments), rounds)
                gaps = [np.abs(x.pixels.astype(int) - y.pixels).mean() for x, y in zip(a, b, strict=True)]
                difference = f"{max(gaps):.2f}"
            if decodes:
                times["torchcodec"] = best(partial(decodes, video, moments), rounds)
            fastest[min(times, key=lambda decoder: times[decoder])] += 1
            shown = {decoder: f"{milliseconds:.1f}" for decoder, milliseconds in times.items()}
            print(
                f"{name:18}{case.delay * 1e3:12.1f}{(beep - flash) * 1e3:12.1f}{share:12.0%}"
                f"{shown['pyav']:>12}{shown.get('decord', '-'):>12}"
                f"{difference:>12}{shown.get('torchcodec', '-'):>14}"
            )
    print("\nfastest, colors aside: " + ", ".join(f"{k} {v}" for k, v in sorted(fastest.items())))
    name = f"largest error of synchronization in {len(REFERENCE_CLIPS)} containers and codecs"
    return [at_most(f"{name}, of {tolerance() * 1e3:.0f} ms", worst, 1.0, "")]


if __name__ == "__main__":
    main(make_parser(__doc__).parse_args(), measure)
