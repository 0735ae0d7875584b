"""Generated media whose truth is known: a moving picture that flashes, a hum that beeps, when asked to.

A recipe's own `mock` puts such media into its dataset's layout; `create_mock_dataset` is the door to all of
them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

FLASH_SECONDS = 0.1

BEEP_SECONDS = 0.1

BEEP_HZ = 1_000.0

NTSC = Fraction(30_000, 1_001)

MILLISECOND = Fraction(1, 1000)


@dataclass(frozen=True)
class Scene:
    """What is to be seen and heard, on an axis of its own that begins with the first frame.

    Attributes:
        seconds: length.
        flashes: when the picture turns white, s; each lasts 0.1 s.
        beeps: when a 1 kHz tone sets in, s; each lasts 0.1 s.
        seed: of the picture's colors and the noise.
        fps: frames a second.
        size: width and height, pixels.
        rate: Hz of the sound.
        channels: of the sound; all alike.
        black: the picture is black throughout.
        silent: there is a sound track, and nothing in it.
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
        """Frames in all."""
        return round(self.seconds * self.fps)


def scene_frame(scene: Scene, number: int) -> np.ndarray:
    """Frame `number` of a scene, uint8 [H, W, 3]: color bands that move, white during a flash."""
    width, height = scene.size
    when = number / float(scene.fps)
    if any(flash - 1e-9 <= when < flash + FLASH_SECONDS for flash in scene.flashes):
        return np.full((height, width, 3), 235, np.uint8)
    if scene.black:
        return np.zeros((height, width, 3), np.uint8)
    dice = np.random.default_rng(scene.seed)
    colors = dice.integers(40, 160, size=(8, 3), dtype=np.uint8)
    bands = colors[((np.arange(width) + 3 * number) * 8 // width) % 8]
    return np.ascontiguousarray(np.broadcast_to(bands, (height, width, 3)))


def scene_audio(scene: Scene, rate: int | None = None) -> np.ndarray:
    """The sound of a scene as mono float32 [n]: a faint hum and noise, with beeps."""
    rate = rate or scene.rate
    count = round(scene.seconds * rate)
    if scene.silent:
        return np.zeros(count, np.float32)
    when = np.arange(count) / rate
    dice = np.random.default_rng(scene.seed)
    wave = 0.004 * np.sin(2 * np.pi * (90 + 7 * (scene.seed % 11)) * when) + 0.003 * dice.normal(size=count)
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
    """Write a scene as a video file; the suffix decides the container.

    Args:
        path: the file; folders are made.
        scene: what it holds.
        vcodec: ffmpeg's name of the video encoder, or None for sound alone.
        acodec: of the sound encoder, or None for a silent film.
        audio_start: s by which the whole sound comes late.
        pixels: frames uint8 [n, H, W, 3] instead of the scene's own.
        samples: mono float32 [n] at `scene.rate` instead of the scene's own.
        options: of the video encoder.
        pix_fmt: of the video.
        keyframes: frames from one keyframe to the next.
        frame_times: when each frame comes on screen, s to the millisecond, instead of evenly from 0; the
            scene's own frames are those of these moments.
    """
    import av  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        hears: Any = None
        sees: Any = None
        if acodec:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[scene.channels]
            hears = container.add_stream(acodec, rate=scene.rate, layout=layout)
            hears.codec_context.flags |= av.codec.context.Flags.bitexact
            if not acodec.startswith("pcm"):
                hears.bit_rate = 256_000 if acodec == "libmp3lame" else 96_000
        if vcodec:
            sees = container.add_stream(vcodec, rate=scene.fps, options=dict(options or {}))
            sees.width, sees.height, sees.pix_fmt = *scene.size, pix_fmt
            sees.gop_size = keyframes
            sees.thread_count = 1
            sees.codec_context.flags |= av.codec.context.Flags.bitexact
            sees.codec_context.time_base = 1 / scene.fps if frame_times is None else MILLISECOND
        if hears is not None:
            _encode_audio(container, hears, scene, audio_start, samples)
        if sees is not None:
            _encode_frames(container, sees, scene, pixels, frame_times)


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
        shown = number if times is None else round(times[number] * scene.fps)
        frame = av.VideoFrame.from_ndarray(
            scene_frame(scene, shown) if pixels is None else pixels[number], format="rgb24"
        )
        frame.pts, frame.time_base = number, 1 / scene.fps
        if times is not None:
            frame.pts, frame.time_base = round(times[number] * 1000), MILLISECOND
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


Subtype = Literal["u8", "s16", "s24", "s32", "float"]


def write_wav(
    path: Path,
    samples: np.ndarray,
    rate: int,
    *,
    subtype: Subtype = "s16",
    channels: int = 1,
    extensible: bool = False,
) -> None:
    """Write mono samples as a WAV with the shortest header of its kind, the same in all channels.

    Args:
        path: the file; folders are made.
        samples: float32 [n] in [-1, 1].
        rate: Hz.
        subtype: how a sample is stored.
        channels: how many.
        extensible: with the WAVE_FORMAT_EXTENSIBLE header.
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


def write_image(path: Path, pixels: np.ndarray, *, mode: str = "RGB", turned: bool = False) -> None:
    """Write a picture, uint8 [H, W, 3], as JPEG or PNG; `turned` stores it on its side, with EXIF."""
    from PIL import Image  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.rot90(pixels) if turned else pixels).convert(mode)
    options: dict[str, Any] = {"quality": 90} if path.suffix == ".jpg" else {}
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn clockwise to show
        options["exif"] = exif
    image.save(path, **options)
