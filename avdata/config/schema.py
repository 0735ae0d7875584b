"""Settings of a preparation as frozen pydantic models, and their hash.

Unknown keys are rejected. `T`, the number of steps of a sample, is `video.num_frames`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from avdata.config.overrides import Overrides, merge_overrides
from avdata.errors import UsageError, did_you_mean, shorten

MIN_AMIN = 1e-37

MAX_JPEG_WIDTH = 65_500
"""Largest width of a JPEG image in pixels, the limit of libjpeg."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AudioConfig(_Settings):
    """Choice of the audio track, and its log-mel or log-STFT spectrogram."""

    source: Literal["auto", "wav", "container"] = Field(
        "auto",
        description="wav: the separate file; container: the video's audio; auto: wav, else container",
    )
    channel: Literal["mix", "left", "right"] = Field(
        "mix", description="mix: average of all channels; left, right: the first or second; mono has one"
    )
    sample_rate: int = Field(16_000, ge=1_000, le=192_000, description="Hz after resampling")
    feature: Literal["log-mel", "log-stft", "pcen", "kaldi-fbank"] = Field(
        "log-mel",
        description="log of mel bands, log of the STFT's bins, PCEN of mel bands (librosa.pcen), or Kaldi's"
        " log-mel filterbank",
    )
    n_fft: int = Field(1024, ge=16, le=65_536, description="STFT window, samples (kaldi-fbank: 25 ms)")
    hop_length: int = Field(80, ge=1, description="samples from one column to the next")
    n_mels: int = Field(128, ge=1, le=1024, description="mel bands; log-stft has n_fft/2+1 bins instead")
    fmin: float = Field(0.0, ge=0, description="Hz, lower edge of the mel bands")
    fmax: float | None = Field(
        None, gt=0, description="Hz, upper edge of the mel bands; null is half the sample rate"
    )
    power: float = Field(2.0, gt=0, le=4, description="1: magnitude, 2: power")
    log: Literal["db", "ln"] = Field(
        "db", description="db: 10·log10(max(S, amin)); ln: log(S + amin); not for pcen and kaldi-fbank"
    )
    amin: float = Field(1e-10, gt=0, description="lower bound of S that keeps silence finite; see log")
    ref: Literal["one", "max"] = Field("one", description="reference of 0 dB: 1.0, or the sample's maximum")
    top_db: float | None = Field(None, gt=0, description="clip below (maximum − top_db); db only")
    clamp: bool = Field(False, description="clip the waveform to ±1 before the STFT")
    normalize: Literal["none", "minmax", "zscore", "ast"] = Field(
        "none",
        description="minmax, zscore: by the sample's values; ast: (x + 4.503877) / 10.282552",
    )
    resize: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="[bins, columns] to resize to after the logarithm"
    )
    layout: Literal["step", "repeat"] = Field(
        "step", description="split the spectrogram into steps, or repeat it T times"
    )
    flac: bool = Field(False, description="also store the waveform of the window")


class VideoConfig(_Settings):
    """Choice of frames, and their resizing and storage."""

    num_frames: int = Field(4, ge=1, le=256, description="steps T of a sample, one frame each")
    size: int = Field(128, ge=8, le=2048, description="height and width, pixels")
    resize_mode: Literal["crop", "stretch", "letterbox", "face"] = Field(
        "crop",
        description="how a frame becomes a square; face: crop around the face, one box for the clip",
    )
    short_side: int | None = Field(
        None, description="crop: pixels to scale the short side to before the center crop"
    )
    pixel_aspect: Literal["square", "stored"] = Field(
        "square",
        description="shape of pixels that are not square: square scales them as on screen, stored keeps them",
    )
    color: Literal["rgb", "gray"] = Field("rgb", description="channels of a frame: 3 or 1")
    frame_sampling: Literal["middle", "every", "random-of-every"] = Field(
        "middle",
        description="middle: shown at mid-step; every: frames 0, n, 2n …; random-of-every: one of those",
    )
    frame_interval: int = Field(29, ge=1, description="n of `every` and `random-of-every`")
    decoder: Literal["pyav", "decord", "ffmpeg"] = Field(
        "pyav",
        description="decord: the same frames, without detecting corrupt ones; ffmpeg: the `ffmpeg` program on"
        " PATH, also for audio",
    )
    hwaccel: Literal["cuda", "vaapi", "qsv", "videotoolbox", "vdpau", "d3d11va", "vulkan"] | None = Field(
        None,
        description="hardware decoder of ffmpeg: cuda, vaapi, qsv, videotoolbox, vdpau, d3d11va or vulkan;"
        " decoder=ffmpeg only; null decodes on the CPU",
    )
    seek: bool = Field(
        False,
        description="seek to the keyframe before each frame: faster, but misses corruption in between",
    )
    storage: Literal["jpeg", "png", "npy"] = Field(
        "jpeg", description="jpeg: frame strip at `quality`; png: lossless frame strip; npy: array"
    )
    quality: int = Field(95, ge=1, le=100, description="JPEG quality of frame strips")


class AlignConfig(_Settings):
    """Time window of a clip, and alignment of its audio and video."""

    window: Literal["whole", "start", "center", "loudest", "event", "segments"] = Field(
        "start",
        description="start, center: of all streams; loudest: maximum audio energy; event: around the"
        " middle of the clip's event; segments: steps of `seconds`, one every `hop`, from the start",
    )
    seconds: float | None = Field(
        2.56,
        gt=0,
        le=3600,
        description="s, length of the window, or of a step with window=segments; null only with window=whole",
    )
    hop: float | None = Field(
        None, gt=0, le=3600, description="segments: s from one step's start to the next; null is `seconds`"
    )
    pad: Literal["zeros", "repeat", "edge"] = Field(
        "zeros", description="how audio outside the clip is filled; frames repeat the first or last one"
    )
    offset_correction: Literal["measured", "container", "none"] = Field(
        "measured",
        description="start of a separate audio file: by cross-correlation; that of the container's audio; 0",
    )
    min_peak: float = Field(
        0.5, ge=0, le=1, description="correlation below which a measured offset is not used"
    )
    max_lag: float = Field(0.5, gt=0, description="s, largest offset searched")
    max_mismatch: float = Field(0.15, gt=0, description="s, difference in duration that sets av_mismatch")

    @property
    def segment(self) -> float | None:
        """Length of a step in seconds with window=segments; None if steps divide the window."""
        return self.seconds if self.window == "segments" else None

    def window_seconds(self, steps: int) -> Fraction:
        """Return the exact seconds of a window of `steps` steps; not for window=whole."""
        seconds = Fraction(str(self.seconds))
        return seconds if self.segment is None else (steps - 1) * self.stride(steps) + seconds

    def stride(self, steps: int) -> Fraction:
        """Return the exact seconds from one step's start to the next; not for window=whole."""
        seconds = Fraction(str(self.seconds))
        if self.segment is None:
            return seconds / steps
        return seconds if self.hop is None else Fraction(str(self.hop))


class QualityConfig(_Settings):
    """Quality limits; each description begins with the reason code or flag it leads to."""

    max_corrupt: float = Field(0.02, ge=0, le=1, description="corrupt_frames: share of decoded frames")
    max_corrupt_audio: float = Field(
        0.02, ge=0, le=1, description="corrupt_audio: share of audio packets; a single one is accepted"
    )
    silence_dbfs: float = Field(
        -60.0, le=0, description="silent_audio: peak level below which a clip is silent"
    )
    silent: Literal["quarantine", "flag"] = Field("quarantine", description="action for silent clips")
    black_luma: float = Field(
        4.0, ge=0, description="black_frames: mean luma (0…255) of the brightest used frame"
    )
    black: Literal["quarantine", "flag"] = Field("flag", description="action for black clips")
    frozen_change: float = Field(
        0.5, ge=0, description="frozen_frames: mean difference (0…255) of all used frames from the first"
    )
    frozen: Literal["quarantine", "flag"] = Field("flag", description="action for frozen clips")
    no_audio: Literal["quarantine", "flag"] = Field(
        "quarantine", description="action for clips without an audio stream; flag uses silence"
    )
    max_clipped: float = Field(
        0.01, ge=0, le=1, description="clipped_audio: share of samples at full scale (0.999 and above)"
    )
    clipped: Literal["quarantine", "flag"] = Field("flag", description="action for clipped clips")
    min_fps: float = Field(0.0, ge=0, description="low_frame_rate: frames per second")
    max_padding: float = Field(
        1.0, ge=0, le=1, description="padded: share of the window that audio or video does not cover"
    )
    min_seconds: float = Field(0.04, ge=0, description="too_short: s, of audio and of video")
    max_seconds: float = Field(900.0, gt=0, description="too_long: s")
    max_pixels: int = Field(64_000_000, gt=0, description="too_large: width × height")
    max_bytes: int = Field(4_000_000_000, gt=0, description="too_large: file size")
    timeout: float = Field(120.0, gt=0, description="timeout: s per clip")


class ShardConfig(_Settings):
    """Grouping of samples into shards."""

    samples_per_shard: int = Field(512, ge=1, le=1_000_000, description="samples per shard")


class SelectConfig(_Settings):
    """Choice of clips, and their splits."""

    split_by: str | None = Field(None, description="split scheme of the recipe; null is its default")
    group_leakage: Literal["keep", "drop-train"] = Field(
        "keep", description="train clips whose group is also in val or test"
    )
    limit: int | None = Field(
        None, ge=1, description="most clips to prepare, quarantined too, in proportion to splits and labels"
    )
    part: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$",
        description="prepare only part I of N, as `I/N`; a hash of the group selects the clips",
    )
    task_options: Mapping[str, str] = Field(
        default_factory=dict, description="options of the recipe by name; see `avdata info RECIPE`"
    )
    seed: int = Field(
        0, description="seed of the selection by `limit` and of the order of clips in the shards"
    )

    @field_validator("part")
    @classmethod
    def _check_part(cls, part: str | None) -> str | None:
        if part is not None:
            number, count = map(int, part.split("/"))
            if number > count:
                msg = f"part {number} of {count} does not exist"
                raise ValueError(msg)
        return part


class Config(_Settings):
    """All settings of one preparation.

    >>> Config().video.num_frames, Config().mel_columns
    (4, 128)
    """

    audio: AudioConfig = AudioConfig()
    video: VideoConfig = VideoConfig()
    align: AlignConfig = AlignConfig()
    quality: QualityConfig = QualityConfig()
    shards: ShardConfig = ShardConfig()
    select: SelectConfig = SelectConfig()

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.align.seconds is None) != (self.align.window == "whole"):
            msg = "align.seconds must be null if align.window is whole, and a number otherwise"
            raise ValueError(msg)
        if self.align.window == "whole" and not (self.audio.resize and self.audio.layout == "repeat"):
            msg = "align.window=whole requires audio.resize and audio.layout=repeat"
            raise ValueError(msg)
        if self.align.hop is not None and self.align.window != "segments":
            msg = "align.hop requires align.window=segments"
            raise ValueError(msg)
        if self.audio.layout == "step":
            for samples in {self._step_samples(), self._stride_samples()}:
                columns = samples / self.audio.hop_length
                if columns.denominator != 1:
                    msg = (
                        f"a step must have an integer number of mel columns, and {float(samples):g} samples"
                        f" / audio.hop_length {self.audio.hop_length} is {float(columns):g};"
                        " change align.seconds, align.hop, video.num_frames or audio.hop_length"
                    )
                    raise ValueError(msg)
            if self.audio.resize:
                msg = "audio.resize requires audio.layout=repeat, since it resizes the complete spectrogram"
                raise ValueError(msg)
        if self.video.hwaccel is not None and self.video.decoder != "ffmpeg":
            msg = (
                f"video.hwaccel={self.video.hwaccel} requires video.decoder=ffmpeg, not {self.video.decoder}"
            )
            raise ValueError(msg)
        self._check_audio()
        width = self.video.num_frames * self.video.size
        if self.video.storage == "jpeg" and width > MAX_JPEG_WIDTH:
            msg = (
                f"a JPEG strip of {self.video.num_frames} frames (video.num_frames) of {self.video.size}"
                f" (video.size) is {width:,} pixels wide, the limit is {MAX_JPEG_WIDTH:,};"
                " set video.storage to png or npy"
            )
            raise ValueError(msg)
        return self

    def _check_audio(self) -> None:
        audio = self.audio
        if audio.normalize == "ast" and audio.feature != "kaldi-fbank":
            msg = f"audio.normalize=ast requires audio.feature=kaldi-fbank, not {audio.feature}"
            raise ValueError(msg)
        if audio.amin < MIN_AMIN:
            msg = f"audio.amin {audio.amin:g} is too small for float32: it must be at least {MIN_AMIN:g}"
            raise ValueError(msg)
        top = audio.fmax or audio.sample_rate / 2
        if top > audio.sample_rate / 2:
            msg = f"audio.fmax {top:g} is above half of audio.sample_rate {audio.sample_rate}"
            raise ValueError(msg)
        if audio.fmin >= top:
            named = "audio.fmax" if audio.fmax else "half of audio.sample_rate,"
            msg = f"audio.fmin {audio.fmin:g} is not below {named} {top:g}"
            raise ValueError(msg)

    def _step_samples(self) -> Fraction:
        align = self.align
        seconds = (
            align.stride(self.video.num_frames) if align.segment is None else Fraction(str(align.seconds))
        )
        return seconds * self.audio.sample_rate

    def _stride_samples(self) -> Fraction:
        return self.align.stride(self.video.num_frames) * self.audio.sample_rate

    @property
    def step_columns(self) -> int:
        """Columns from one step's start to the next; L unless segments overlap or have gaps."""
        return int(self._stride_samples() / self.audio.hop_length)

    @property
    def mel_columns(self) -> int:
        """Columns L of one step of the stored spectrogram."""
        if self.audio.resize:
            return self.audio.resize[1]
        if self.audio.layout == "step":
            return int(self._step_samples() / self.audio.hop_length)
        window = round(self.align.window_seconds(self.video.num_frames) * self.audio.sample_rate)
        # Centered windows of odd length reach half a sample less far.
        return 1 + (window - self.audio.n_fft % 2) // self.audio.hop_length

    def canonical(self) -> str:
        """Return the settings as one line of JSON with sorted keys, equal for equal settings."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    @property
    def hash(self) -> str:
        """Hexadecimal SHA-256 of `canonical()`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def build_config(*layers: Overrides) -> Config:
    """Return the settings of the merged overrides. Later layers replace earlier ones.

    >>> build_config({"video": {"num_frames": 8}}).video.num_frames
    8

    Raises:
        UsageError: a key is unknown or a value is invalid; the message names the key.
    """
    merged: Overrides = {}
    for layer in layers:
        merged = merge_overrides(merged, layer)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> UsageError:
    first = error.errors()[0]
    where, value = shorten(".".join(map(str, first["loc"]))), shorten(repr(first["input"]))
    if first["type"] == "extra_forbidden":
        return UsageError(f"Unknown setting {where}.", hint=did_you_mean(where, setting_names()))
    if not where:
        return UsageError(f"Inconsistent settings: {format_validation_error(first)}.")
    if where in Config.model_fields:
        some = [name for name in setting_names() if name.startswith(f"{where}.")]
        return UsageError(f"{where} is a section, not a setting.", hint=f"Its settings: {', '.join(some)}.")
    return UsageError(f"Invalid setting {where}={value}: {format_validation_error(first)}.")


def format_validation_error(error: ErrorDetails) -> str:
    """Return pydantic's message in lower case, to follow a colon."""
    message = error["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    return message[:1].lower() + message[1:]


def setting_names() -> list[str]:
    """Return every setting as `section.key`, in the order of the sections."""
    return [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in getattr(field.annotation, "model_fields", {})
    ]
