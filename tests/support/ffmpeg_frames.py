"""Frames and their times by the `ffmpeg` program."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import ffmpeg
import imageio_ffmpeg


def ffmpeg_frames(path: Path, *filters: tuple[str, str]) -> tuple[list[float], bytes]:
    """Return the time in s of each frame of a file's video, and the RGB pixels of all frames.

    Args:
        path: the file.
        filters: name and arguments of filters to apply.
    """
    stream = ffmpeg.input(str(path), copyts=None)["V:0"].filter("showinfo")
    for name, arguments in filters:
        stream = stream.filter(name, *arguments.split(":"))
    stream = stream.filter("scale", flags="bilinear+accurate_rnd+full_chroma_int").filter("format", "rgb24")
    command = stream.output("pipe:", format="rawvideo", fps_mode="passthrough")
    result = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", *command.get_args()],
        capture_output=True, timeout=600, check=True,
    )  # fmt: skip
    log = result.stderr.decode(errors="replace")
    base = re.search(r"config in time_base: (\d+)/(\d+)", log)
    assert base is not None
    seconds_per_pts = int(base[1]) / int(base[2])
    return [int(pts) * seconds_per_pts for pts in re.findall(r"n: *\d+ pts: *(-?\d+) ", log)], result.stdout
