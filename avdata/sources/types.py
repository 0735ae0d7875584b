"""Types shared by the modules of the downloader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from avdata.storage.remote import redact_url

_OVERLOADED = frozenset({429, 503})


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


class TransferError(Exception):
    """Failure of one attempt to download a file.

    The message has no credentials and queries of URLs: signed links have a secret in the query.

    Attributes:
        retryable: whether a later attempt at the same URL may succeed.
        wait: delay in seconds that the server requested with `Retry-After`.
        status: HTTP status, if any.
        overloaded: whether the server asked for fewer requests.
        server: server of the request, if it is not the one of the manifest's URL.
        hint: what the user can do.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        wait: float | None = None,
        status: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(redact_url(message))
        self.retryable = retryable
        self.wait = wait
        self.status = status
        self.overloaded = status in _OVERLOADED or (status is not None and wait is not None)
        self.hint = hint
        self.server: str | None = None


def host_of(url: str) -> str:
    """Return the host and port of a URL, without credentials.

    >>> host_of("https://me:secret@example.org:8443/a?b=c")
    'example.org:8443'
    """
    return urlsplit(url).netloc.rpartition("@")[2]
