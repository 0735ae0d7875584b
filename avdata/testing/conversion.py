"""Convert media with the `ffmpeg` program, for files that PyAV's wheels cannot write."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from avdata.errors import AvdataError, UsageError
from avdata.media.ffmpeg_program import INSTALL_ADVICE, find_ffmpeg

CONVERSION_TIMEOUT_S = 300


def convert_av(
    source: Path,
    target: Path,
    *,
    input_options: Mapping[str, str | int] | None = None,
    options: Mapping[str, str | int],
) -> None:
    """Convert a media file, for example one of `write_av`, with the `ffmpeg` program.

    This writes what PyAV's wheels have no encoder for, and metadata of the container. ffmpeg-python builds
    the command. The program is that of PATH, else that of the package imageio-ffmpeg.

        convert_av(clip, root / "clip.mp4", options={"vcodec": "libvvenc", "acodec": "copy"})
        convert_av(clip, root / "sideways.mp4", input_options={"display_rotation": 90}, options={"c": "copy"})

    Args:
        source: file to convert.
        target: file to write; its suffix selects the container. Missing folders are created.
        input_options: options of the input, without their dash.
        options: options of the output, without their dash. Equal options give equal bytes.

    Raises:
        UsageError: there is no `ffmpeg` program.
        AvdataError: ffmpeg failed.
    """
    import ffmpeg  # noqa: PLC0415

    target.parent.mkdir(parents=True, exist_ok=True)
    exact = {"fflags": "+bitexact", "flags:v": "+bitexact", "flags:a": "+bitexact", "threads": 1}
    stream = ffmpeg.input(f"file:{source.absolute()}", **(input_options or {}))
    stream = stream.output(f"file:{target.absolute()}", **{**exact, **options})
    program = [_find_program(), "-nostdin", "-loglevel", "error"]
    done = subprocess.run(  # noqa: S603  # no shell; paths begin with `file:`
        ffmpeg.compile(stream, cmd=program, overwrite_output=True),
        stdin=subprocess.DEVNULL, capture_output=True, timeout=CONVERSION_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        msg = f"ffmpeg cannot convert {source} to {target}: {last}"
        raise AvdataError(msg, hint="`ffmpeg -encoders` and `ffmpeg -muxers` list what this build writes.")


def _find_program() -> str:
    if (program := find_ffmpeg()) is not None:
        return program
    if find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg  # noqa: PLC0415

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    msg = "Converting media requires the ffmpeg program, and PATH has none."
    raise UsageError(msg, hint=f"{INSTALL_ADVICE}, or pip install imageio-ffmpeg.")
