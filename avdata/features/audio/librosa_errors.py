"""Errors of a librosa that cannot be imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from avdata.errors import AvdataError


@contextmanager
def librosa_errors() -> Iterator[None]:
    """Raise AvdataError if librosa, or what it imports on first use, cannot be imported."""
    try:
        yield
    except ImportError as error:
        msg = f"librosa cannot be imported: {error}."
        raise AvdataError(msg, hint="Run: pip install librosa") from error
    except RuntimeError as error:
        # https://github.com/numba/numba/issues/5566: librosa requires numba to cache its functions.
        if "cannot cache function" not in str(error):
            raise
        msg = f"librosa cannot be imported: numba {error}."
        raise AvdataError(msg, hint="Set NUMBA_CACHE_DIR to a writable folder.") from error
