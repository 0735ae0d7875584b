"""Media that the `ffmpeg` program writes, and what it reads from them, as independent truth."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

SECONDS = 2.0

RATE = 48_000

FPS = 25

H264 = ("-c:v", "libx264", "-bf", "0", "-c:a", "aac")
MPEG4 = ("-c:v", "mpeg4", "-c:a", "libmp3lame")

VIDEO_FILES: dict[str, tuple[str, ...]] = {
    "clip.mp4": H264,
    "faststart.mp4": (*H264, "-movflags", "faststart"),
    "fragmented.mp4": (*H264, "-movflags", "frag_keyframe+empty_moov", "-g", "10"),
    "clip.mov": H264,
    "clip.3gp": ("-c:v", "mpeg4", "-c:a", "aac"),
    "clip.mkv": H264,
    "clip.webm": ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus"),
    "clip.avi": MPEG4,
    "clip.flv": ("-c:v", "flv1", "-c:a", "libmp3lame", "-ar", "44100"),
    "clip.mpg": ("-c:v", "mpeg1video", "-c:a", "mp2"),
    "clip.vob": ("-c:v", "mpeg2video", "-c:a", "ac3"),
    "clip.ts": H264,
    "clip.m2ts": H264,
    "clip.wmv": ("-c:v", "wmv2", "-c:a", "wmav2"),
    "clip.dv": ("-s", "720x576", "-c:v", "dvvideo", "-ac", "2"),
    "clip.nut": MPEG4,
    "clip.mxf": ("-c:v", "mpeg2video", "-c:a", "pcm_s16le"),
    "clip.ogv": ("-c:v", "libtheora", "-c:a", "libvorbis"),
}
"""Options of the ffmpeg program by file name."""

AUDIO_FILES: dict[str, tuple[str, ...]] = {
    "a.wav": (), "rf64.wav": ("-rf64", "always"), "a.w64": (), "a.aiff": (), "a.au": (), "a.caf": (),
    "a.flac": (), "a.ogg": ("-c:a", "libvorbis"), "a.opus": (), "a.mka": ("-c:a", "libvorbis"), "a.mp3": (),
    "a.mp2": (), "a.aac": (), "a.m4a": (), "a.wma": (), "a.amr": ("-ar", "8000"),
}  # fmt: skip
"""Options of the ffmpeg program by file name."""

WITHOUT_LENGTH = (
    "clip.nut",
    "clip.dv",
    "clip.ts",
    "clip.m2ts",
    "clip.mpg",
    "clip.vob",
    "a.mp2",
    "a.aac",
    "a.amr",
)
"""Files whose headers state neither a size nor a duration."""


def run_ffmpeg(*arguments: str | Path) -> bytes:
    """Run the program and return its stdout."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout


def write_media(folder: Path) -> None:
    """Write all files of the tables, of a moving picture and noise in a tone."""
    folder.mkdir(parents=True)
    base = folder / "base.mkv"
    size = f"s=352x288:r={FPS}:d={SECONDS}"
    sound = f"aevalsrc='0.4*sin(880*PI*t)+0.05*random(0)':s={RATE}:d={SECONDS}"
    run_ffmpeg(
        "-f", "lavfi", "-i", f"testsrc2={size}", "-f", "lavfi", "-i", sound, "-pix_fmt", "yuv420p",
        "-c:v", "ffv1", "-c:a", "pcm_s16le", base,
    )  # fmt: skip
    for name, options in VIDEO_FILES.items():
        run_ffmpeg("-i", base, *options, folder / name)
    for name, options in AUDIO_FILES.items():
        run_ffmpeg("-i", base, "-vn", *options, folder / name)


def frame_times(path: Path, stream: str = "V:0") -> np.ndarray:
    """Return the timestamps of the frames that ffmpeg decodes, s."""
    log = _filter_log(path, "-map", f"0:{stream}", "-vf", "showinfo", "-fps_mode", "passthrough")
    return np.array([float(time) for time in re.findall(r"showinfo.*? pts_time:([\d.e+-]+)", log)])


def audio_start(path: Path) -> float:
    """Return the timestamp of the first sample that ffmpeg decodes, s."""
    log = _filter_log(path, "-map", "0:a:0", "-af", "ashowinfo")
    found = re.search(r"ashowinfo.*? pts_time:([\d.e+-]+)", log)
    return float(found[1]) if found else 0.0


def _filter_log(path: Path, *options: str) -> str:
    command = ["ffmpeg", "-nostdin", "-copyts", "-i", path, *options, "-f", "null", "-"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120)
    return done.stderr.decode(errors="replace")


def audio_samples(path: Path, stream: str = "a:0") -> np.ndarray:
    """Return the samples that ffmpeg decodes, the mean of the channels, float32 [n]."""
    data = run_ffmpeg("-i", path, "-map", f"0:{stream}", "-f", "au", "-c:a", "pcm_f32be", "-")
    channels = int.from_bytes(data[20:24])
    samples = np.frombuffer(data[int.from_bytes(data[4:8]) :], ">f4")
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
