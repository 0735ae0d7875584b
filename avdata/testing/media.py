"""Generated media with known event times: moving color bands with flashes, noise with beeps.

The `mock` function of a recipe arranges such media in the layout of its dataset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

FLASH_SECONDS = 0.1

BEEP_SECONDS = 0.1

BEEP_HZ = 1_000.0

NTSC = Fraction(30_000, 1_001)
"""Frames per second of NTSC video, 29.97."""

MILLISECOND = Fraction(1, 1000)

_listeners: list[Callable[[Path], None]] = []
"""Functions called with each file that is written. A list, since functions of the public API are pickled."""


@contextmanager
def watch_media(on_written: Callable[[Path], None]) -> Iterator[None]:
    """Call a function with the path of each media file that is written inside the context."""
    _listeners.append(on_written)
    try:
        yield
    finally:
        _listeners.remove(on_written)


def _report_written(path: Path) -> None:
    for listener in _listeners:
        listener(path)


@dataclass(frozen=True)
class Scene:
    """Content of a generated clip. Times count from the first frame.

    Attributes:
        seconds: duration in seconds.
        flashes: start times in seconds of white frames; each flash lasts 0.1 s.
        beeps: start times in seconds of a 1 kHz tone; each beep lasts 0.1 s.
        seed: seed of the colors and the noise.
        fps: frames per second.
        size: width and height in pixels.
        rate: audio sample rate in Hz.
        channels: number of audio channels, all equal.
        black: whether all frames are black, except for flashes.
        silent: whether the audio is digital silence.
    """

    seconds: float
    flashes: tuple[float, ...] = ()
    beeps: tuple[float, ...] = ()
    seed: int = 0
    fps: Fraction = NTSC
    size: tuple[int, int] = (480, 360)
    rate: int = 44_100
    channels: int = 1
    black: bool = False
    silent: bool = False

    @property
    def frames(self) -> int:
        """Number of frames."""
        return round(self.seconds * self.fps)


def scene_frame(scene: Scene, number: int) -> np.ndarray:
    """Return frame `number` of a scene, uint8 [H, W, 3]: moving color bands, white during a flash."""
    width, height = scene.size
    when = number / float(scene.fps)
    if any(flash - 1e-9 <= when < flash + FLASH_SECONDS for flash in scene.flashes):
        return np.full((height, width, 3), 235, np.uint8)
    if scene.black:
        return np.zeros((height, width, 3), np.uint8)
    rng = np.random.default_rng(scene.seed)
    colors = rng.integers(40, 160, size=(8, 3), dtype=np.uint8)
    bands = colors[((np.arange(width) + 3 * number) * 8 // width) % 8]
    return np.ascontiguousarray(np.broadcast_to(bands, (height, width, 3)))


def scene_audio(scene: Scene, rate: int | None = None) -> np.ndarray:
    """Return the audio of a scene, mono float32 [n]: faint hum and noise, with beeps."""
    rate = rate or scene.rate
    count = round(scene.seconds * rate)
    if scene.silent:
        return np.zeros(count, np.float32)
    when = np.arange(count) / rate
    rng = np.random.default_rng(scene.seed)
    wave = 0.004 * np.sin(2 * np.pi * (90 + 7 * (scene.seed % 11)) * when) + 0.003 * rng.normal(size=count)
    for beep in scene.beeps:
        during = (when >= beep - 1e-9) & (when < beep + BEEP_SECONDS)
        wave[during] += 0.5 * np.sin(2 * np.pi * BEEP_HZ * (when[during] - beep))
    return wave.astype(np.float32)


def write_av(
    path: Path,
    scene: Scene,
    *,
    vcodec: str | None = "flv1",
    acodec: str | None = "libmp3lame",
    audio_start: float = 0.0,
    pixels: Any = None,
    samples: np.ndarray | None = None,
    options: Mapping[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    keyframes: int = 1_000,
    frame_times: Sequence[float] | None = None,
) -> None:
    """Write a scene as a media file. The suffix selects the container.

    Args:
        path: output file; missing folders are created.
        scene: content of the file.
        vcodec: FFmpeg name of the video encoder; None for audio only.
        acodec: FFmpeg name of the audio encoder; None for video only.
        audio_start: delay of the audio in seconds.
        pixels: frames, uint8 [n, H, W, 3], in place of the scene's.
        samples: mono float32 [n] at `scene.rate`, in place of the scene's.
        options: options of the video encoder.
        pix_fmt: FFmpeg pixel format of the video.
        keyframes: interval between keyframes, in frames.
        frame_times: presentation time of each frame in seconds, rounded to 1 ms; the default is a constant
            frame rate from 0. The scene is rendered at these times.
    """
    import av  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        # All streams must be added before the first packet is written.
        audio = _add_audio_stream(container, acodec, scene) if acodec else None
        video: Any = None
        if vcodec:
            video = container.add_stream(vcodec, rate=scene.fps, options=dict(options or {}))
            video.width, video.height, video.pix_fmt = *scene.size, pix_fmt
            video.gop_size = keyframes
            video.thread_count = 1
            video.codec_context.flags |= av.codec.context.Flags.bitexact
            video.codec_context.time_base = 1 / scene.fps if frame_times is None else MILLISECOND
        if audio is not None:
            _encode_audio(container, audio, scene, audio_start, samples)
        if video is not None:
            _encode_frames(container, video, scene, pixels, frame_times)
    _report_written(path)


def _add_audio_stream(container: Any, codec: str, scene: Scene) -> Any:
    import av  # noqa: PLC0415

    layout = {1: "mono", 2: "stereo", 6: "5.1"}[scene.channels]
    stream = container.add_stream(codec, rate=scene.rate, layout=layout)
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    if not codec.startswith("pcm"):
        stream.bit_rate = 256_000 if codec == "libmp3lame" else 96_000
    return stream


def _encode_audio(
    container: Any, stream: Any, scene: Scene, start: float, samples: np.ndarray | None
) -> None:
    import av  # noqa: PLC0415

    mono = scene_audio(scene) if samples is None else samples
    wave = np.repeat(mono[None], scene.channels, axis=0).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout=stream.layout.name)
    frame.sample_rate, frame.time_base = scene.rate, Fraction(1, scene.rate)
    converter = av.AudioResampler(format=stream.format, layout=stream.layout, rate=scene.rate)
    fifo = av.AudioFifo()
    for piece in converter.resample(frame):
        fifo.write(piece)
    size = stream.codec_context.frame_size or 1024
    while chunk := fifo.read(size, partial=False) or fifo.read(0, partial=True):
        chunk.pts = (chunk.pts or 0) + round(start * scene.rate)
        container.mux(stream.encode(chunk))
    container.mux(stream.encode(None))


def _encode_frames(
    container: Any, stream: Any, scene: Scene, pixels: Any, times: Sequence[float] | None
) -> None:
    import av  # noqa: PLC0415

    count = len(times) if times is not None else scene.frames if pixels is None else len(pixels)
    for number in range(count):
        index = number if times is None else round(times[number] * scene.fps)
        frame = av.VideoFrame.from_ndarray(
            scene_frame(scene, index) if pixels is None else pixels[number], format="rgb24"
        )
        frame.pts, frame.time_base = number, 1 / scene.fps
        if times is not None:
            frame.pts, frame.time_base = round(times[number] * 1000), MILLISECOND
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


Subtype = Literal["u8", "s16", "s24", "s32", "float"]
"""Sample format of a WAV file."""


def write_wav(
    path: Path,
    samples: np.ndarray,
    rate: int,
    *,
    subtype: Subtype = "s16",
    channels: int = 1,
    extensible: bool = False,
) -> None:
    """Write mono samples to all channels of a WAV file with a minimal header.

    Args:
        path: output file; missing folders are created.
        samples: float32 [n] in [-1, 1].
        rate: sample rate in Hz.
        subtype: sample format.
        channels: number of channels.
        extensible: whether to write the WAVE_FORMAT_EXTENSIBLE header.
    """
    width = {"u8": 1, "s16": 2, "s24": 3, "s32": 4, "float": 4}[subtype]
    data = _pcm(np.repeat(np.clip(samples, -1, 1), channels), subtype)
    tag = 3 if subtype == "float" else 1
    shape = struct.pack("<HIIHH", channels, rate, rate * channels * width, channels * width, 8 * width)
    head = struct.pack("<H", 0xFFFE if extensible else tag) + shape
    if extensible:
        guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
        head += struct.pack("<HHI", 22, 8 * width, 0) + guid
    body = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body + bytes(len(data) % 2))
    _report_written(path)


def _pcm(samples: np.ndarray, subtype: Subtype) -> bytes:
    wide = samples.astype(np.float64)
    if subtype == "u8":
        return np.round(wide * 127 + 128).astype(np.uint8).tobytes()
    if subtype == "float":
        return wide.astype("<f4").tobytes()
    if subtype == "s16":
        return np.round(wide * 32_767).astype("<i2").tobytes()
    full = np.round(wide * (2**31 - 1)).astype("<i4")
    if subtype == "s32":
        return full.tobytes()
    return full.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


def write_image(path: Path, pixels: np.ndarray, *, mode: str = "RGB", rotated: bool = False) -> None:
    """Write an image as JPEG or PNG.

    Args:
        path: output file; missing folders are created.
        pixels: uint8 [H, W, 3].
        mode: Pillow mode to convert to.
        rotated: whether to store the image rotated by 90°, with the EXIF orientation that undoes it.
    """
    from PIL import Image  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.rot90(pixels) if rotated else pixels).convert(mode)
    options: dict[str, Any] = {"quality": 90} if path.suffix == ".jpg" else {}
    if rotated:
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate clockwise for display
        options["exif"] = exif
    image.save(path, **options)
    _report_written(path)
