"""Checks of what the code of a recipe returns, and the error for what it raises."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TypeGuard

from avdata.errors import AvdataError

_DEBUG_HINT = "Use --debug for the traceback."


@contextmanager
def recipe_errors(file: str) -> Iterator[None]:
    """Raise `AvdataError` with file and line in place of unexpected exceptions of a recipe.

    What the recipe prints goes to standard error, since `--json` commands print JSON.

    Raises:
        AvdataError: the recipe raised another exception than `AvdataError` or `OSError`, or ended.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (AvdataError, OSError):
        raise
    except SystemExit as error:
        msg = f"{file} ended with sys.exit({error.code!r})."
        raise AvdataError(msg, hint="Raise avdata.SourceError with the reason instead.") from error
    except SyntaxError as error:
        msg = f"{file}:{error.lineno} raised SyntaxError: {error.msg}."
        raise AvdataError(msg, hint=_DEBUG_HINT) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
        msg = f"{file}:{lines[-1] if lines else '?'} raised {type(error).__name__}: {error}."
        raise AvdataError(msg, hint=_DEBUG_HINT) from error


def check_labels(labels: object, where: str) -> None:
    """Check that labels are different texts that are not empty.

    Raises:
        AvdataError: a label is invalid, or occurs twice.
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        msg = f"Invalid {where}: {type(labels).__name__} in place of a tuple of texts."
        raise AvdataError(msg)
    for label in labels:
        if not is_text(label) or not label.strip():
            msg = f"Invalid label among the {where}: {label!a}."
            raise AvdataError(msg, hint="Use texts that are not empty.")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        msg = f"Label {repeated[0]!r} occurs twice among the {where}."
        raise AvdataError(msg)


def is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is a text that UTF-8 can encode."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
