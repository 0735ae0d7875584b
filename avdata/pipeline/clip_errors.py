"""Decide which exceptions quarantine a clip, and which end the run."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from avdata.errors import AvdataError, MediaError, QuarantineReason, SourceError
from avdata.recipe import Clip

log = logging.getLogger(__name__)

MAX_DETAIL = 300
"""Characters of the detail of a quarantine row."""

_PATH = re.compile(r"(?<![\w.])(?:file:)?(?:/[^/:'\"<>|\s]+)*/([^/:'\"<>|\s]+)")
"""An absolute path without spaces, and its last part."""

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


@contextmanager
def clip_errors(clip: Clip) -> Iterator[None]:
    """Turn unexpected exceptions into a MediaError, which quarantines the clip.

    Errors of the environment end the run: a source file that cannot be read, a module that cannot be
    imported, and exhausted memory. They would quarantine clips that another run can prepare.

    Raises:
        MediaError: DECODER_ERROR, or one that was raised.
        AvdataError: an error of the environment.
    """
    try:
        yield
    except (MediaError, AvdataError):
        raise
    except MemoryError as error:
        if _is_from_ffmpeg(error):
            raise _decoder_error(clip, error) from error
        msg = f"Out of memory while preparing clip {clip.key}."
        hint = (
            "Use fewer --workers, or exclude the clip. Run the same command again: finished shards are kept."
        )
        raise AvdataError(msg, hint=hint) from error
    except ImportError as error:
        msg = f"A module cannot be imported: {error}."
        raise AvdataError(msg, hint="Run: avdata doctor") from error
    except OSError as error:
        if error.errno is None or _is_from_ffmpeg(error):
            raise _decoder_error(clip, error) from error
        # Raised here, because `write_errors` would blame the shard.
        msg = f"Source file cannot be read: {error.filename or clip.key} ({error.strerror or error})."
        hint = "Run the same command again when the source is available: finished shards are kept."
        raise SourceError(msg, hint=hint) from error
    except Exception as error:
        raise _decoder_error(clip, error) from error


def _is_from_ffmpeg(error: Exception) -> bool:
    """Return whether PyAV raised an error: ffmpeg uses the system's error codes for damaged files."""
    return any(kind.__name__ == "FFmpegError" for kind in type(error).__mro__)


def _decoder_error(clip: Clip, error: Exception) -> MediaError:
    log.debug("Clip %s: unexpected exception", clip.key, exc_info=error)
    detail = f"{type(error).__name__}: {_portable_text(clip, str(error))}"
    return MediaError(QuarantineReason.DECODER_ERROR, f"{detail} (clip {clip.key})")


def _portable_text(clip: Clip, text: str) -> str:
    """Return text of bounded length, without paths and addresses of this machine and control characters."""
    for path in (clip.video, clip.audio):
        if path is not None:
            text = text.replace(os.path.abspath(path), path.name).replace(str(path), path.name)
    text = _ADDRESS.sub("0x…", _PATH.sub(r"\1", text))
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= MAX_DETAIL else f"{text[: MAX_DETAIL - 1]}…"
