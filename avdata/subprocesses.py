"""Child processes of Python, which import nothing from the current folder.

The current folder may be a downloaded dataset. `python -m` and `python -c` would import its `soundfile.py`.
"""

from __future__ import annotations

import os
import sys


def python_command(*arguments: str) -> list[str]:
    """Return the command of a child Python without the current folder on `sys.path`.

    >>> python_command("-m", "avdata")[1:]
    ['-P', '-m', 'avdata']
    """
    return [sys.executable, "-P", *arguments]


def python_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a child Python, in which its own children are as safe.

    Args:
        variables: variables to set besides those of this process.
    """
    return {**os.environ, "PYTHONSAFEPATH": "1", **variables}
