"""HTTP client: keep-alive connections, proxies, TLS, redirects and status codes.

Proxies are read from `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, additional certificate authorities from
`SSL_CERT_FILE` or `REQUESTS_CA_BUNDLE`. Plain http is used only if the manifest's URL has this scheme.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import urljoin, urlsplit

import certifi
import urllib3
from urllib3 import exceptions as http_errors
from urllib3.response import BaseHTTPResponse

CONNECT_TIMEOUT_S = 15.0

READ_TIMEOUT_S = 45.0

MAX_RETRY_AFTER_S = 600.0

_MAX_REDIRECTS = 10

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_OVERLOADED = frozenset({429, 503})

_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})

_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})

_PROXY_HINT = "If a proxy inspects TLS, set SSL_CERT_FILE to its certificate authority."

_OFFLINE_HINT = "Check the network connection of this machine."


class TransferError(Exception):
    """Failure of one attempt to download a file.

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
        super().__init__(message)
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


class HttpClient:
    """Connections to any number of hosts, shared by the threads of a download."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._proxies = urllib.request.getproxies()
        self._pools: dict[tuple[str | None, str], urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._active: set[BaseHTTPResponse] = set()
        self._agent = f"avdata/{version('avdata')}"

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme)
        if proxy and urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = None
        with self._lock:
            if (proxy, parts.scheme) not in self._pools:
                self._pools[proxy, parts.scheme] = self._make_pool(proxy, parts.scheme)
            return self._pools[proxy, parts.scheme]

    def _make_pool(self, proxy: str | None, scheme: str) -> urllib3.PoolManager:
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        # Loading the certificates takes 0.1 s.
        secure = "https" in (scheme, urlsplit(proxy or "").scheme)
        context = _certificates() if secure else None
        if proxy is None:
            return urllib3.PoolManager(
                32, maxsize=self._size, timeout=timeout, retries=False, ssl_context=context
            )
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        login = f"{parts.username}:{parts.password or ''}" if parts.username else None
        return urllib3.ProxyManager(
            parts.geturl(),
            32,
            proxy_headers=urllib3.make_headers(proxy_basic_auth=login),
            maxsize=self._size,
            timeout=timeout,
            retries=False,
            ssl_context=context,
            proxy_ssl_context=context,
        )

    @contextmanager
    def open(
        self, url: str, headers: Mapping[str, str], *, method: str = "GET", body: bytes | None = None
    ) -> Iterator[BaseHTTPResponse]:
        """Return a response with unread body and status 200, 206 or 416; follow redirects.

        Raises:
            TransferError: there is no such response.
        """
        with _transfer_errors(url):
            response = self._follow(url, headers, method, body)
            self._active.add(response)
            try:
                _check_status(response, url)
                yield response
            finally:
                self._active.discard(response)
                if response.length_remaining == 0:
                    response.release_conn()
                else:
                    response.close()

    def _follow(
        self, url: str, headers: Mapping[str, str], method: str, body: bytes | None
    ) -> BaseHTTPResponse:
        request_headers = {"User-Agent": self._agent, "Accept-Encoding": "identity", **headers}
        seen = {url}
        for _ in range(_MAX_REDIRECTS):
            response = self._pool(url).request(
                method,
                url,
                headers=request_headers,
                body=body,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or not target:
                return response
            response.drain_conn()
            response.release_conn()
            location = urljoin(url, target)
            _check_redirect(url, location, seen)
            if host_of(location) != host_of(url):
                request_headers = {
                    name: value
                    for name, value in request_headers.items()
                    if name.lower() not in _SECRET_HEADERS
                }
            url = location
        msg = f"more than {_MAX_REDIRECTS} redirects"
        raise TransferError(msg)

    def abort(self) -> None:
        """Close all responses that are being read, to wake up the threads that wait for bytes."""
        for response in tuple(self._active):
            # A response that ended in the meantime has no socket.
            with contextlib.suppress(ValueError, RuntimeError, OSError, NotImplementedError):
                response.shutdown()

    def close(self) -> None:
        """Close all keep-alive connections."""
        for pool in self._pools.values():
            pool.clear()


def _certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where())
    return context


def _check_redirect(url: str, location: str, seen: set[str]) -> None:
    if location in seen:
        msg = f"redirect loop at {_bare(location)}"
        raise TransferError(msg)
    seen.add(location)
    scheme = urlsplit(location).scheme
    if scheme not in ("https", urlsplit(url).scheme):
        msg = f"unsupported redirect from {urlsplit(url).scheme} to {_bare(location)}"
        raise TransferError(msg)


def _bare(url: str) -> str:
    # Signed links have a secret in the query.
    parts = urlsplit(url)
    return f"{parts.scheme}://{host_of(url)}{parts.path}"


def _check_status(response: BaseHTTPResponse, url: str) -> None:
    status = response.status
    if status in (200, 206, 416):
        return
    wait = _retry_after(response.headers.get("Retry-After"))
    exhausted = response.headers.get("x-ratelimit-remaining") == "0"
    retryable = status in _RETRYABLE_STATUSES or (status == 403 and (wait is not None or exhausted))
    hint = None
    if status in (401, 403):
        hint = f"{host_of(url)} requires other credentials for this file, or its quota is exceeded."
    if wait is not None and wait > MAX_RETRY_AFTER_S:
        msg = f"HTTP {status}: {host_of(url)} requests a delay of {wait:,.0f} s"
        raise TransferError(msg, status=status, wait=wait, hint="Repeat the command later; it resumes.")
    raise TransferError(
        f"HTTP {status} {response.reason or ''}".strip(),
        retryable=retryable,
        wait=wait,
        status=status,
        hint=hint,
    )


def _retry_after(value: str | None) -> float | None:
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


@contextmanager
def _transfer_errors(url: str) -> Iterator[None]:
    host = host_of(url)
    try:
        yield
    except http_errors.SSLError as error:
        rejected = "CERTIFICATE_VERIFY_FAILED" in str(error) or "doesn't match" in str(error)
        msg = f"no TLS connection to {host}: {error}"
        raise TransferError(msg, retryable=not rejected, hint=_PROXY_HINT) from error
    except http_errors.ProxyError as error:
        msg = f"no connection to {host} through the proxy: {error}"
        raise TransferError(
            msg, retryable=True, hint="Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
        ) from error
    except http_errors.NameResolutionError as error:
        msg = f"unknown host {host}"
        raise TransferError(msg, retryable=True, hint=_OFFLINE_HINT) from error
    except http_errors.NewConnectionError as error:
        msg = f"no connection to {host}: {error}"
        raise TransferError(msg, retryable=True, hint=_OFFLINE_HINT) from error
    except http_errors.TimeoutError as error:
        msg = f"no response from {host} within {READ_TIMEOUT_S:g} s"
        raise TransferError(msg, retryable=True) from error
    except (http_errors.LocationParseError, http_errors.URLSchemeUnknown) as error:
        msg = f"invalid URL: {error}"
        raise TransferError(msg) from error
    except (http_errors.HTTPError, ssl.SSLError, ConnectionError, TimeoutError) as error:
        msg = f"connection to {host} lost: {error}"
        raise TransferError(msg, retryable=True) from error
