"""HTTP client: a `requests` session with shared connections, safe redirects and one kind of error.

Proxies, certificate authorities and logins are those of `storage.network`. Plain http is used only if the
manifest's URL has this scheme.
"""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
import threading
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import exceptions as urllib3_errors
from urllib3.response import BaseHTTPResponse

from avdata.errors import redact_url
from avdata.sources.types import TransferError, host_of, link_text
from avdata.storage.network import netrc_login, proxies_for, tls_context, url_login
from avdata.storage.retry import retry_after

CONNECT_TIMEOUT_S = 10.0

READ_TIMEOUT_S = 45.0

MAX_RETRY_AFTER_S = 600.0

_MAX_REDIRECTS = 10

_COMPLETE = frozenset({200, 206, 416})

_REDIRECTS = frozenset({200, 301, 302, 303, 307, 308})

_MAX_HOSTS = 32

_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})

_FORWARDED_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "if-range",
        "range",
        "user-agent",
    }
)
"""Request headers that a redirect takes along to another server."""
_CERTIFICATE_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID of OpenSSL

_CERTIFICATE_HINT = "If a proxy inspects TLS, set SSL_CERT_FILE to its certificate authority."

_PROXY_HINT = "Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY."

_RESOLVE_HINT = "Check the network connection and the name server of this machine."

_OFFLINE_HINT = "Check the network connection of this machine."


class HttpClient:
    """Connections to any number of hosts, shared by the threads of a download."""

    def __init__(self, size: int) -> None:
        self._session = _make_session(size)
        self._active: set[BaseHTTPResponse] = set()
        self._is_aborted = False
        self._headers = {"User-Agent": f"avdata/{version('avdata')}"}
        # Proxies and login of each server: reading them takes 0.1 ms.
        self._servers: dict[tuple[str, str], tuple[dict[str, str], str | None]] = {}

    @contextmanager
    def open(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        body: bytes | None = None,
        read_timeout: float | None = None,
    ) -> Iterator[BaseHTTPResponse]:
        """Return a response with unread body and status 200, 206 or 416; follow redirects.

        The body is yielded as sent, without decoding of its `Content-Encoding`. The response to HEAD may be
        a redirect, which is not followed. `read_timeout` in seconds applies if it is shorter than
        `READ_TIMEOUT_S`.

        Raises:
            TransferError: there is no such response.
        """
        timeout = min(read_timeout or READ_TIMEOUT_S, READ_TIMEOUT_S)
        with _transfer_errors(url, timeout):
            response, is_redirected = self._send(url, headers, method, body, timeout)
            self._active.add(response)
            try:
                if self._is_aborted:
                    msg = "aborted"
                    raise TransferError(msg)
                accepted = _REDIRECTS if method == "HEAD" else _COMPLETE
                _check_status(response, url, accepted, is_redirected=is_redirected)
                yield response
            finally:
                self._active.discard(response)
                if response.length_remaining == 0:
                    response.release_conn()
                else:
                    response.close()

    def _send(
        self, url: str, headers: Mapping[str, str], method: str, body: bytes | None, timeout: float
    ) -> tuple[BaseHTTPResponse, bool]:
        """Return the response with unread body, and whether the request was redirected."""
        server = urlsplit(url)[:2]
        if server not in self._servers:
            self._servers[server] = proxies_for(url), url_login(url) or netrc_login(url)
        proxies, login = self._servers[server]
        merged = CaseInsensitiveDict({**self._headers, **headers})
        if login:
            merged.setdefault("Authorization", login)
        # Session.request takes four times as long, which counts for many small files.
        request = requests.PreparedRequest()
        request.prepare(method, url, headers=merged, data=body, auth=_keep_headers)
        response = self._session.send(
            request,
            timeout=(CONNECT_TIMEOUT_S, timeout),
            proxies=proxies,
            stream=True,
            allow_redirects=method != "HEAD",
        )
        return response.raw, bool(response.history)

    def head(
        self, url: str, headers: Mapping[str, str], *, read_timeout: float | None = None
    ) -> tuple[str, Mapping[str, str]]:
        """Return the location of a file and the headers of its server; follow redirects of that server only.

        Raises:
            TransferError: the file is not available, or the redirects do not end.
        """
        location = url
        for _ in range(_MAX_REDIRECTS):
            with self.open(location, headers, method="HEAD", read_timeout=read_timeout) as response:
                target = response.headers.get("Location")
                following = urljoin(location, target) if target else location
                if not target or host_of(following) != host_of(location):
                    return following, response.headers
            location = following
        msg = f"more than {_MAX_REDIRECTS} redirects"
        raise TransferError(msg)

    def abort(self) -> None:
        """Shut down all responses, to wake up the threads that wait for bytes; `open` raises from now on."""
        self._is_aborted = True
        for response in tuple(self._active):
            # A response that ended in the meantime has no socket.
            with contextlib.suppress(ValueError, RuntimeError, OSError, NotImplementedError):
                response.shutdown()

    def close(self) -> None:
        """Close all keep-alive connections."""
        self._session.close()


def _make_session(size: int) -> requests.Session:
    """Return a session of at most `size` kept connections per host, without cookies."""
    for module in ("connection", "connectionpool"):
        logging.getLogger(f"urllib3.{module}").addFilter(_redact_record)
    session = _Session()
    session.max_redirects = _MAX_REDIRECTS
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.mount("http://", _Adapter(pool_connections=_MAX_HOSTS, pool_maxsize=size))
    session.mount("https://", _TlsAdapter(pool_connections=_MAX_HOSTS, pool_maxsize=size))
    return session


def _redact_record(record: logging.LogRecord) -> bool:
    # urllib3 logs URLs with the secrets of signed links.
    record.msg, record.args = redact_url(record.getMessage()), ()
    return True


class _Adapter(HTTPAdapter):
    """Adapter for http, and for proxies whose login is not in Latin-1."""

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        login = url_login(proxy)
        return {"Proxy-Authorization": login} if login else {}


class _TlsAdapter(_Adapter):
    """Adapter whose connections share one TLS context: loading the certificates takes 0.1 s."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def _shared_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = tls_context()
            return self._context

    def build_connection_pool_key_attributes(self, *arguments: Any, **options: Any) -> Any:
        server, settings = super().build_connection_pool_key_attributes(*arguments, **options)
        return server, {**settings, "ssl_context": self._shared_context()}

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        if proxy.startswith("https:"):
            options["proxy_ssl_context"] = self._shared_context()
        return super().proxy_manager_for(proxy, **options)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing: the context verifies."""


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep the prepared login; requests would read one in Latin-1 from the URL."""
    return request


class _Session(requests.Session):
    """Session that rejects redirect loops and insecure redirects."""

    def rebuild_method(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        # A git-LFS server redirects the POST to a renamed repository with 301, and git-lfs repeats it.
        if response.status_code in (301, 302):
            response.status_code = 307
        super().rebuild_method(prepared_request, response)

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> dict[str, str]:
        return proxies_for(prepared_request.url or "")

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Check the redirect, then drop a login that is meant for another server."""
        target = prepared_request.url or ""
        if target in (response.url, *(earlier.url for earlier in response.history)):
            msg = f"redirect loop at {link_text(target)}"
            raise TransferError(msg)
        scheme = urlsplit(response.url).scheme
        if urlsplit(target).scheme not in ("https", scheme):
            msg = f"unsupported redirect from {scheme} to {link_text(target)}"
            raise TransferError(msg)
        if self.should_strip_auth(response.url, target):  # type: ignore[no-untyped-call]
            # Not only `Authorization`: a git-LFS server chooses the names of its headers.
            for name in [name for name in prepared_request.headers if name.lower() not in _FORWARDED_HEADERS]:
                del prepared_request.headers[name]
            if login := url_login(target) or netrc_login(target):
                prepared_request.headers["Authorization"] = login


def _check_status(
    response: BaseHTTPResponse, url: str, accepted: Container[int], *, is_redirected: bool
) -> None:
    status = response.status
    if status in accepted:
        return
    wait = retry_after(response.headers.get("Retry-After"))
    exhausted = response.headers.get("x-ratelimit-remaining") == "0"
    retryable = status in _RETRYABLE_STATUSES or (status == 403 and (wait is not None or exhausted))
    hint = None
    if status in (401, 403):
        hint = f"{host_of(url)} requires other credentials for this file, or its quota is exceeded."
    if wait is not None and wait > MAX_RETRY_AFTER_S:
        msg = f"HTTP {status}: {host_of(url)} requests a delay of {wait:,.0f} s"
        raise TransferError(msg, status=status, wait=wait, hint="Repeat the command later; it resumes.")
    # The Hugging Face Hub explains its refusals there.
    reason = response.headers.get("X-Error-Message") or response.reason or ""
    raise TransferError(
        f"HTTP {status} {reason}".strip(),
        retryable=retryable,
        wait=wait,
        status=status,
        hint=hint,
        is_redirected=is_redirected,
    )


@contextmanager
def _transfer_errors(url: str, timeout: float) -> Iterator[None]:
    try:
        yield
    except (OSError, urllib3_errors.HTTPError) as error:
        raise _transfer_error(host_of(url), _cause(error), timeout) from error
    except ValueError as error:  # a port of 99999, a size of 5,000 digits
        msg = f"invalid response from {host_of(url)}: {error}"
        raise TransferError(msg) from error


def _cause(error: BaseException) -> BaseException:
    """Return urllib3's error within an error of requests, whose message contains the URL."""
    if isinstance(error, requests.RequestException) and error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, urllib3_errors.MaxRetryError) and error.reason:
        error = error.reason
    return error


def _proxy_error(error: BaseException) -> BaseException | None:
    """Return the proxy's error within an error of urllib3, which hides those of SOCKS; None without one."""
    if isinstance(error, urllib3_errors.ProxyError):
        return error.original_error
    cause = error.__cause__ or error.__context__
    return cause if type(cause).__module__ == "socks" else None


def _transfer_error(host: str, error: BaseException, timeout: float) -> TransferError:
    retryable, hint = True, None
    match error:
        case urllib3_errors.SSLError():
            refused = next((arg for arg in error.args if isinstance(arg, ssl.SSLCertVerificationError)), None)
            retryable = refused is None
            msg, hint = f"no TLS connection to {host}: {error}", _CERTIFICATE_HINT
            if refused and refused.verify_code == _CERTIFICATE_NOT_YET_VALID:
                now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
                msg = f"certificate of {host} not valid yet: the clock of this machine, {now}, may be wrong"
                hint = "Set the clock of this machine."
        case urllib3_errors.ProxyError() | urllib3_errors.NewConnectionError() if cause := _proxy_error(
            error
        ):
            # Some proxies refuse a wrong login with 401, not 407.
            retryable = not re.search(r"failed: 4\d\d|authentication", str(cause))
            msg, hint = f"no connection to {host} through the proxy: {cause}", _PROXY_HINT
        case urllib3_errors.NameResolutionError():
            # Not always `host`, which may have redirected to it.
            msg, hint = f"cannot resolve {error.conn.host}", _RESOLVE_HINT
        case urllib3_errors.NewConnectionError():
            msg, hint = f"no connection to {host}: {error}", _OFFLINE_HINT
        case urllib3_errors.ConnectTimeoutError():
            msg, hint = f"no connection to {host} within {CONNECT_TIMEOUT_S:g} s", _OFFLINE_HINT
        case urllib3_errors.TimeoutError():
            msg = f"no response from {host} within {timeout:g} s"
        case requests.TooManyRedirects():
            retryable, msg = False, f"more than {_MAX_REDIRECTS} redirects"
        case requests.RequestException() | urllib3_errors.LocationValueError():
            retryable, msg = False, f"invalid request to {host}: {error}"
        case _:
            msg = f"connection to {host} lost: {error}"
    return TransferError(msg, retryable=retryable, hint=hint)
