"""Types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A file to fetch: its path below the root, its URLs in order of preference, and what is known of it."""

    path: str
    urls: tuple[str, ...]
    checksum: str | None = None
    bytes: int | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class ResolvedUrl:
    """Where a file's bytes are at this moment, and what the scheme says of them."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    checksum: str | None = None
    bytes: int | None = None
