"""Check of URLs before the first request: an impossible one is refused at once and not retried."""

from __future__ import annotations

from urllib.parse import urlsplit

from avdata.errors import UsageError

_WEB_SCHEMES = frozenset({"http", "https", "lfs+http", "lfs+https"})

_HOSTLESS_SCHEMES = frozenset({"file", "memory"})


def check_url(url: str, where: str = "") -> None:
    """Check that a request to a URL is possible.

    Args:
        url: URL of a file or folder.
        where: where the URL is stated, for the message, such as "source 'media' of the manifest".

    Raises:
        UsageError: the URL has no host or bucket, or its host or port is invalid.
    """
    problem = _find_problem(url)
    if problem is not None:
        msg = f"Invalid URL{f' in {where}' if where else ''}: {url} ({problem})."
        raise UsageError(msg, hint="The form is SCHEME://HOST/PATH; an IPv6 address is written in brackets.")


def _find_problem(url: str) -> str | None:
    """Return why no request to a URL is possible; None if one is.

    >>> _find_problem("https://example.org:99999/a"), _find_problem("https://example.org:8443/a")
    ('Port out of range 0-65535', None)
    """
    scheme, separator, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if not separator or not (authority or scheme in _HOSTLESS_SCHEMES):
        return "no host or bucket"
    try:
        parts = urlsplit(url)
        return _find_host_problem(parts.hostname, parts.port, authority) if scheme in _WEB_SCHEMES else None
    except UnicodeError:
        return "a part of the host name is empty or longer than 63 characters"
    except ValueError as error:
        return str(error)


def _find_host_problem(host: str | None, port: int | None, authority: str) -> str | None:
    if not host:
        return "no host"
    if ":" not in host:
        host.removesuffix(".").encode("idna")
    # `urlsplit` drops tabs and line breaks.
    if any(letter.isspace() for letter in authority):
        return "a space in the host"
    return "port 0" if port == 0 else None
