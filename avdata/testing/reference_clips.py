"""Flash-and-beep clips with known event times in many containers, frame timings and audio formats.

Tests measure alignment and decoders against them; `benchmarks/sync.py` prints the results as a table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from avdata.recipe import Clip
from avdata.testing.bitstreams import pack_b_frames, store_as_vfw
from avdata.testing.conversion import convert_av
from avdata.testing.media import Scene, Subtype, scene_audio, write_av, write_wav

EVENT_TIME = 1.2

SCENE = Scene(
    seconds=2.5,
    flashes=(EVENT_TIME,),
    beeps=(EVENT_TIME,),
    size=(160, 120),
    fps=Fraction(25),
    rate=48_000,
    seed=2,
)

X265 = {"x265-params": "log-level=none"}

FAST = {"preset": "ultrafast"}

VP9 = {"deadline": "realtime", "cpu-used": "8"}


@dataclass(frozen=True)
class ReferenceClip:
    """Clip in one format.

    Attributes:
        suffix: suffix of the video file.
        write: writes the files of the clip, given the path of the video.
        delay: start of the beep minus start of the flash, in seconds.
        wav: whether the clip's audio is a WAV file beside the video.
        has_pts: whether each packet of the video has a pts.
    """

    suffix: str
    write: Callable[[Path], None]
    delay: float = 0.0
    wav: bool = False
    has_pts: bool = True

    def make(self, folder: Path, name: str) -> Clip:
        """Write the clip into a folder."""
        video = folder / f"{name}{self.suffix}"
        self.write(video)
        audio = video.with_suffix(".wav") if self.wav else None
        return Clip(key=name, label="a", group=name, split="train", video=video, audio=audio)


def _video(scene: Scene = SCENE, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_av(path, scene, **options)

    return write


H264: dict[str, Any] = {"vcodec": "libx264", "acodec": "aac", "options": FAST}


def _pair(
    rate: int,
    subtype: Subtype = "s16",
    *,
    channels: int = 1,
    extensible: bool = False,
    video_only: bool = False,
) -> Callable[[Path], None]:
    """Return a writer of a video with the same audio in a separate WAV file."""

    def write(path: Path) -> None:
        video_file = {**H264, "acodec": None if video_only else "aac"}
        write_av(path, SCENE, **video_file)
        wave = scene_audio(SCENE, rate)
        write_wav(
            path.with_suffix(".wav"), wave, rate, subtype=subtype, channels=channels, extensible=extensible
        )

    return write


def _rotated(path: Path) -> None:
    """Write H.264 video with a display matrix that rotates it by 90°."""
    upright = path.with_name(f"upright-{path.name}")
    write_av(upright, SCENE, **H264)
    convert_av(upright, path, input_options={"display_rotation": 90}, options={"c": "copy"})
    upright.unlink()


def _avi(vcodec: str, *, bf: int) -> Callable[[Path], None]:
    return _video(vcodec=vcodec, acodec="pcm_s16le", options={"bf": str(bf)})


def _without_pts(rewrite: Callable[[Path, Path], None], *, bf: int) -> Callable[[Path], None]:
    """Return a writer of MPEG-4 video with B-frames that is rewritten from AVI."""

    def write(path: Path) -> None:
        source = path.with_name(f"source-{path.stem}.avi")
        _avi("mpeg4", bf=bf)(source)
        rewrite(source, path)
        source.unlink()

    return write


def _av1(path: Path) -> None:
    """Write AV1 video, and restore the scheduling of the thread.

    For root, SVT-AV1 gives its caller the real-time priority 99, and every process that it starts later; they
    starve the others of the machine.
    """
    has_policies = hasattr(os, "sched_getscheduler")
    policy = (os.sched_getscheduler(0), os.sched_getparam(0)) if has_policies else None
    try:
        _video(vcodec="libsvtav1", acodec="aac", options={"preset": "12"})(path)
    finally:
        if policy:
            os.sched_setscheduler(0, *policy)


def _variable_rate() -> list[float]:
    """Return frame times with irregular intervals, one of them at the flash."""
    rng = np.random.default_rng(0)
    steps = rng.choice([0.04, 0.08], size=80)
    before = EVENT_TIME - np.cumsum(steps[:30])[::-1]
    after = EVENT_TIME + np.cumsum(rng.choice([0.04, 0.08], size=40))
    times = [*before[before > 0], EVENT_TIME, *after[after < SCENE.seconds]]
    return [round(float(time), 3) for time in times]


def _opus(**options: Any) -> Callable[[Path], None]:
    return _video(vcodec="libvpx-vp9", acodec="libopus", options=VP9, **options)


REFERENCE_CLIPS: dict[str, ReferenceClip] = {
    "flv-flv1-mp3": ReferenceClip(".flv", _video(replace(SCENE, rate=44_100))),
    "mp4-h264-aac": ReferenceClip(".mp4", _video(**H264)),
    "mp4-h264-bframes": ReferenceClip(
        ".mp4", _video(vcodec="libx264", acodec="aac", options={"bf": "3"}, keyframes=10)
    ),
    "mp4-hevc-aac": ReferenceClip(".mp4", _video(vcodec="libx265", acodec="aac", options=X265)),
    "mp4-av1-aac": ReferenceClip(".mp4", _av1),
    "mkv-vp9-opus": ReferenceClip(".mkv", _opus()),
    "webm-vp9-opus": ReferenceClip(".webm", _opus()),
    # AVI has no pts: with B-frames, ffmpeg shows the frames later by the decoder's delay.
    "avi-h264-bframes": ReferenceClip(".avi", _avi("libx264", bf=3), delay=-2 / 25, has_pts=False),
    "avi-mpeg4-bframes": ReferenceClip(".avi", _avi("mpeg4", bf=2), delay=-1 / 25, has_pts=False),
    "avi-mpeg2-bframes": ReferenceClip(".avi", _avi("mpeg2video", bf=2), delay=-1 / 25, has_pts=False),
    "avi-packed-bframes": ReferenceClip(
        ".avi", _without_pts(pack_b_frames, bf=1), delay=-1 / 25, has_pts=False
    ),
    "mkv-vfw-bframes": ReferenceClip(".mkv", _without_pts(store_as_vfw, bf=2), delay=-1 / 25, has_pts=False),
    "mpg-mpeg1-mp2": ReferenceClip(".mpg", _video(vcodec="mpeg1video", acodec="mp2", options={"bf": "2"})),
    "vob-mpeg2-mp2": ReferenceClip(".vob", _video(vcodec="mpeg2video", acodec="mp2", options={"bf": "2"})),
    "ts-h264-bframes": ReferenceClip(".ts", _video(vcodec="libx264", acodec="aac", options={"bf": "3"})),
    "wmv-wmv2-wmav2": ReferenceClip(".wmv", _video(vcodec="wmv2", acodec="wmav2")),
    "avi-mjpeg-pcm": ReferenceClip(".avi", _video(vcodec="mjpeg", acodec="pcm_s16le", pix_fmt="yuvj420p")),
    "mov-h264-aac": ReferenceClip(".mov", _video(**H264)),
    "hevc-10-bit": ReferenceClip(
        ".mp4", _video(vcodec="libx265", acodec="aac", options=X265, pix_fmt="yuv420p10le")
    ),
    "odd-size": ReferenceClip(
        ".mkv", _video(replace(SCENE, size=(161, 121)), vcodec="libx264", acodec="aac", pix_fmt="yuv444p")
    ),
    "rotated": ReferenceClip(".mp4", _rotated),
    "uneven-frames": ReferenceClip(".mkv", _video(**H264, frame_times=_variable_rate())),
    "late-audio": ReferenceClip(".mp4", _video(**H264, audio_start=0.4), delay=0.4),
    "late-video": ReferenceClip(".mkv", _video(**H264, frame_times=[0.4 + n / 25 for n in range(50)])),
    "stereo": ReferenceClip(".mp4", _video(replace(SCENE, channels=2), **H264)),
    "five-one": ReferenceClip(".mp4", _video(replace(SCENE, channels=6), **H264)),
    "pcm-8k": ReferenceClip(
        ".avi", _video(replace(SCENE, rate=8_000), vcodec="mjpeg", acodec="pcm_s16le", pix_fmt="yuvj420p")
    ),
    "flac-192k": ReferenceClip(
        ".mkv", _video(replace(SCENE, rate=192_000), vcodec="libx264", acodec="flac", options=FAST)
    ),
    "wav-16k": ReferenceClip(".mp4", _pair(16_000), wav=True),
    "wav-11024-u8": ReferenceClip(".mp4", _pair(11_024, "u8"), wav=True),
    "wav-192k-s24": ReferenceClip(".mp4", _pair(192_000, "s24"), wav=True),
    "wav-s32-5.1": ReferenceClip(".mp4", _pair(44_100, "s32", channels=6, extensible=True), wav=True),
    "wav-float": ReferenceClip(".mp4", _pair(48_000, "float", channels=2), wav=True),
    "wav-video-only": ReferenceClip(".mp4", _pair(16_000, video_only=True), wav=True),
}


def video_codec(path: Path) -> str:
    """Return ffmpeg's name of the codec of a file's video track, such as `h264`."""
    import av  # noqa: PLC0415

    with av.open(str(path)) as container:
        return str(container.streams.video[0].codec_context.codec.canonical_name)


def onsets(clip: Clip) -> tuple[float, float]:
    """Return the times of the beep in the mel and of the flash in the frames, in seconds.

    Steps of 20 ms place every frame at the middle of a step; mel columns are 5 ms apart.
    """
    from avdata.config.schema import build_config  # noqa: PLC0415
    from avdata.features.extract import extract_features  # noqa: PLC0415

    config = build_config({"video": {"num_frames": 128, "size": 16}, "audio": {"n_fft": 512}})
    features = extract_features(clip, config)
    assert features.frames is not None
    mel = np.concatenate(list(features.mel.astype(np.float32)), axis=1)
    band = mel[40:60].max(axis=0)
    # A window centered on the onset has half of the amplitude, 6 dB below the maximum.
    column = int(np.argmax(band > band.max() - 6.02))
    white = features.frames.mean(axis=(1, 2, 3)) > 190
    beep = features.window[0] + column * config.audio.hop_length / config.audio.sample_rate
    return beep, features.frame_times[int(np.argmax(white))]


def tolerance() -> float:
    """Return the accepted error in seconds: half a frame or one mel column, the longer of the two."""
    return max(0.5 / float(SCENE.fps), 0.005)
