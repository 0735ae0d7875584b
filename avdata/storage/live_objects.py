"""Sets of objects that exist in this process only."""

from __future__ import annotations

import weakref
from typing import Any, TypeVar

_Live = TypeVar("_Live")


class LiveObjects(weakref.WeakSet[_Live]):
    """Weak set of objects of this process.

    A pickle is empty: dill copies the globals of modules that a function names, and a weak set changes while
    it is copied.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return LiveObjects, ()
