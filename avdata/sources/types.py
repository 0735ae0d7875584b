"""Types shared by the modules of the downloader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from avdata.errors import escape_controls, redact_url, shorten

_OVERLOADED = frozenset({429, 503})

_MAX_MESSAGE = 400


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
        expires_at: POSIX time in seconds at which the URL expires; None if unknown.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    checksum: str | None = None
    bytes: int | None = None
    expires_at: float | None = None

    def __post_init__(self) -> None:
        """Check the URL, which a server may have chosen."""
        try:
            parts = urlsplit(self.url)
            is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of the port or an IPv6 address
            is_valid = False
        if not is_valid:
            msg = f"link that is no http URL: {link_text(self.url)}"
            raise TransferError(msg)


class TransferError(Exception):
    """Failure of one attempt to download a file.

    The message is one short line without credentials and queries of URLs: signed links have a secret in the
    query.

    Attributes:
        retryable: whether a later attempt at the same URL may succeed.
        wait: delay in seconds that the server requested with `Retry-After`.
        status: HTTP status, if any.
        overloaded: whether the server asked for fewer requests.
        server: server of the request; None if the request was not made by `LimitedClient`.
        hint: what the user can do.
        cause: the message without what differs between files.
        is_redirected: whether the error came from the target of a redirect.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        wait: float | None = None,
        status: int | None = None,
        hint: str | None = None,
        cause: str | None = None,
        is_redirected: bool = False,
    ) -> None:
        # Servers choose a part of it: a reason, a location, a size.
        super().__init__(escape_controls(shorten(redact_url(message), _MAX_MESSAGE)))
        self.retryable = retryable
        self.wait = wait
        self.status = status
        self.overloaded = status in _OVERLOADED or (status is not None and wait is not None)
        self.hint = hint
        self.cause = cause or str(self)
        self.is_redirected = is_redirected
        self.server: str | None = None


def link_text(url: str) -> str:
    """Return the text of a link that a server chose: without login, query and fragment, in any scheme.

    >>> link_text("ftp://me:secret@example.org/a?secret'secret#secret")
    'ftp://example.org/a'
    """
    return redact_url(re.split("[?#]", url, maxsplit=1)[0])


def host_of(url: str) -> str:
    """Return the host and port of a URL, without credentials.

    >>> host_of("https://me:secret@example.org:8443/a?b=c")
    'example.org:8443'
    """
    return urlsplit(url).netloc.rpartition("@")[2]


def server_of(url: str) -> str:
    """Return the unit of rate limiting: scheme and host, or the URL if it has no host.

    >>> server_of("lfs+https://example.org/owner/repo.git"), server_of("gdrive:1abc")
    ('https://example.org', 'gdrive:1abc')
    """
    parts = urlsplit(url)
    return f"{parts.scheme.removeprefix('lfs+')}://{host_of(url)}" if parts.netloc else url
