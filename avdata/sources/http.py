"""HTTP client: a `requests` session with shared connections, safe redirects and one kind of error.

`requests` reads proxies from `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, and logins from `~/.netrc`. The
certificate authorities of the system, of certifi, of `SSL_CERT_FILE` and of `REQUESTS_CA_BUNDLE` are trusted.
Plain http is used only if the manifest's URL has this scheme.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_netrc_auth
from urllib3 import exceptions as urllib3_errors
from urllib3.response import BaseHTTPResponse

from avdata.sources.types import TransferError, host_of
from avdata.storage.remote import redact_url
from avdata.storage.retry import retry_after

CONNECT_TIMEOUT_S = 15.0

READ_TIMEOUT_S = 45.0

MAX_RETRY_AFTER_S = 600.0

_MAX_REDIRECTS = 10

_MAX_HOSTS = 32

_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})

_CERTIFICATE_HINT = "If a proxy inspects TLS, set SSL_CERT_FILE to its certificate authority."

_PROXY_HINT = "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY."

_OFFLINE_HINT = "Check the network connection of this machine."


class HttpClient:
    """Connections to any number of hosts, shared by the threads of a download."""

    def __init__(self, size: int) -> None:
        self._session = _make_session(size)
        self._active: set[BaseHTTPResponse] = set()
        self._is_aborted = False
        self._headers = {"User-Agent": f"avdata/{version('avdata')}"}
        # Proxy, certificates and login of each server: reading them takes 0.1 ms.
        self._servers: dict[tuple[str, str], tuple[Any, tuple[str, str] | None]] = {}

    @contextmanager
    def open(
        self, url: str, headers: Mapping[str, str], *, method: str = "GET", body: bytes | None = None
    ) -> Iterator[BaseHTTPResponse]:
        """Return a response with unread body and status 200, 206 or 416; follow redirects.

        The body is yielded as sent, without decoding of its `Content-Encoding`.

        Raises:
            TransferError: there is no such response.
        """
        with _transfer_errors(url):
            response = self._send(url, headers, method, body)
            self._active.add(response)
            try:
                if self._is_aborted:
                    msg = "aborted"
                    raise TransferError(msg)
                _check_status(response, url)
                yield response
            finally:
                self._active.discard(response)
                if response.length_remaining == 0:
                    response.release_conn()
                else:
                    response.close()

    def _send(
        self, url: str, headers: Mapping[str, str], method: str, body: bytes | None
    ) -> BaseHTTPResponse:
        server = urlsplit(url)[:2]
        if server not in self._servers:
            settings = self._session.merge_environment_settings(url, {}, True, None, None)
            self._servers[server] = settings, get_netrc_auth(url)
        settings, login = self._servers[server]
        merged = CaseInsensitiveDict({**self._headers, **headers})
        # Session.request takes four times as long, which counts for many small files.
        request = requests.PreparedRequest()
        auth = None if "Authorization" in merged else login
        request.prepare(method, url, headers=merged, data=body, auth=auth)
        timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        response: BaseHTTPResponse = self._session.send(request, timeout=timeout, **settings).raw
        return response

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
    logging.getLogger("urllib3.connection").addFilter(_redact_record)
    session = _Session()
    session.max_redirects = _MAX_REDIRECTS
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.mount("http://", HTTPAdapter(pool_connections=_MAX_HOSTS, pool_maxsize=size))
    session.mount("https://", _TlsAdapter(pool_connections=_MAX_HOSTS, pool_maxsize=size))
    return session


def _redact_record(record: logging.LogRecord) -> bool:
    # urllib3 logs URLs with the secrets of signed links.
    record.msg, record.args = redact_url(record.getMessage()), ()
    return True


class _TlsAdapter(HTTPAdapter):
    """Adapter whose connections share one TLS context: loading the certificates takes 0.1 s."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def build_connection_pool_key_attributes(self, *arguments: Any, **options: Any) -> Any:
        server, settings = super().build_connection_pool_key_attributes(*arguments, **options)
        with self._lock:
            if self._context is None:
                self._context = ssl.create_default_context()
                self._context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
        return server, {**settings, "ssl_context": self._context}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        if verify is True:
            return
        try:
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise TransferError(str(error), hint="Check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE.") from error


class _Session(requests.Session):
    """Session that rejects redirect loops and insecure redirects."""

    def rebuild_method(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        # A git-LFS server redirects the POST to a renamed repository with 301, and git-lfs repeats it.
        if response.status_code in (301, 302):
            response.status_code = 307
        super().rebuild_method(prepared_request, response)

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> Any:
        # requests would use the last server's proxy also for a server in NO_PROXY.
        return super().rebuild_proxies(prepared_request, {})  # type: ignore[no-untyped-call]

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Check the redirect, then drop a login that is meant for another server."""
        target = prepared_request.url or ""
        if target in (response.url, *(earlier.url for earlier in response.history)):
            msg = f"redirect loop at {target}"
            raise TransferError(msg)
        scheme = urlsplit(response.url).scheme
        if urlsplit(target).scheme not in ("https", scheme):
            msg = f"unsupported redirect from {scheme} to {target}"
            raise TransferError(msg)
        if self.should_strip_auth(response.url, target):  # type: ignore[no-untyped-call]
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]


def _check_status(response: BaseHTTPResponse, url: str) -> None:
    status = response.status
    if status in (200, 206, 416):
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
    raise TransferError(
        f"HTTP {status} {response.reason or ''}".strip(),
        retryable=retryable,
        wait=wait,
        status=status,
        hint=hint,
    )


@contextmanager
def _transfer_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, urllib3_errors.HTTPError) as error:
        raise _transfer_error(host_of(url), _cause(error)) from error


def _cause(error: BaseException) -> BaseException:
    """Return urllib3's error within an error of requests, whose message contains the URL."""
    if isinstance(error, requests.RequestException) and error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, urllib3_errors.MaxRetryError) and error.reason:
        error = error.reason
    return error


def _transfer_error(host: str, error: BaseException) -> TransferError:
    retryable, hint = True, None
    match error:
        case urllib3_errors.SSLError():
            retryable = not any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args)
            msg, hint = f"no TLS connection to {host}: {error}", _CERTIFICATE_HINT
        case urllib3_errors.ProxyError():
            msg, hint = f"no connection to {host} through the proxy: {error}", _PROXY_HINT
        case urllib3_errors.NameResolutionError():
            msg, hint = f"unknown host {host}", _OFFLINE_HINT
        case urllib3_errors.NewConnectionError():
            msg, hint = f"no connection to {host}: {error}", _OFFLINE_HINT
        case urllib3_errors.TimeoutError():
            msg = f"no response from {host} within {READ_TIMEOUT_S:g} s"
        case requests.TooManyRedirects():
            retryable, msg = False, f"more than {_MAX_REDIRECTS} redirects"
        case requests.RequestException() | urllib3_errors.LocationValueError():
            retryable, msg = False, f"invalid request to {host}: {error}"
        case _:
            msg = f"connection to {host} lost: {error}"
    return TransferError(msg, retryable=retryable, hint=hint)
