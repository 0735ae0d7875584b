"""Types shared by the modules of the downloader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A file to download.

    Attributes:
        path: relative to the dataset's folder.
        urls: in order of preference.
        checksum: expected checksum as `algorithm:hex`; None if unknown.
        bytes: expected size; None if unknown.
        source: name of the manifest's source that lists the file.
    """

    path: str
    urls: tuple[str, ...]
    checksum: str | None = None
    bytes: int | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class ResolvedUrl:
    """Current location of a file.

    Attributes:
        url: http or https URL of the bytes; it may expire.
        headers: request headers that the server requires.
        checksum: as the scheme's server states it; None if it does not.
        bytes: size as the scheme's server states it; None if it does not.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    checksum: str | None = None
    bytes: int | None = None
