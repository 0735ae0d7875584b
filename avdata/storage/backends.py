"""Table of storage backends: their properties that fsspec does not provide.

To add a backend, add a row to `BACKENDS`. Errors are recognized by the name of their type, so that no client
has to be imported.

docs/decisions/0006-fsspec-clients.md says why the clients are fsspec's and not obstore, which a fork breaks.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avdata.errors import UsageError, redact_url
from avdata.storage.network import certificate_bundle, has_own_authorities, tls_context
from avdata.storage.urls import check_url

_REFUSED_STATUSES = frozenset({401, 403})

_MISSING_STATUSES = frozenset({404, 410})


@dataclass(frozen=True, slots=True)
class StorageBackend:
    """Properties of one storage service.

    Attributes:
        schemes: URL schemes, the usual one first.
        package: distribution to install for its fsspec client; None if avdata depends on it.
        extra: extra of avdata that installs `package`; None if there is none.
        filesystem: `module:class` of the client, where it is not the one that fsspec registers.
        options: arguments of the client; a value in the user's configuration of fsspec replaces one.
        tls_options: function that returns further arguments, for the certificate authorities of the
            environment.
        atomic_uploads: whether an upload becomes visible only when it is complete.
        has_folders: whether folders can be listed and written. Web servers only send files by name.
        modified_key: key of the modification time in a listing; None if listings have none.
        refused_errors: error type names that mean "no permission", besides `PermissionError`.
        refused_prefixes: beginnings of messages that mean the same.
        unreachable_errors: error type names that mean "no connection to the server".
        invalid_errors: error type names that mean "no such URL or name is possible", besides `ValueError`.
        login_hint: how the client finds credentials, as a hint of an error.
        server_hint: how the client finds its server, as a hint of an error.
    """

    schemes: tuple[str, ...]
    package: str | None = None
    extra: str | None = None
    filesystem: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tls_options: Callable[[], Mapping[str, Any]] = dict
    atomic_uploads: bool = False
    has_folders: bool = True
    modified_key: str | None = None
    refused_errors: frozenset[str] = frozenset()
    refused_prefixes: tuple[str, ...] = ()
    unreachable_errors: frozenset[str] = frozenset()
    invalid_errors: frozenset[str] = frozenset()
    login_hint: str = "Check the URL and your credentials."
    server_hint: str = ""

    @property
    def install_command(self) -> str | None:
        """Command that installs the client; None if it is always installed."""
        if self.package is None:
            return None
        return f"pip install 'avdata[{self.extra}]'" if self.extra else f"pip install {self.package}"


_AIOHTTP_SESSION = {"trust_env": True}
"""Setting with which aiohttp uses the proxies of the environment (`HTTPS_PROXY`), as other clients do."""


async def _open_session(**options: Any) -> Any:
    """Return an aiohttp session that trusts the certificate authorities of the environment."""
    from aiohttp import ClientSession, TCPConnector  # noqa: PLC0415

    return ClientSession(connector=TCPConnector(ssl=tls_context()), **options)


def _https_tls_options() -> dict[str, Any]:
    return {"get_client": _open_session} if has_own_authorities() else {}


def _s3_tls_options() -> dict[str, Any]:
    bundle = None if os.environ.get("AWS_CA_BUNDLE") else certificate_bundle()
    return {"client_kwargs": {"verify": bundle}} if bundle else {}


_AIOHTTP_UNREACHABLE = frozenset(
    {"ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError"}
)

BACKENDS = (
    StorageBackend(("file",), modified_key="mtime"),
    StorageBackend(
        ("https", "http"),
        package="aiohttp",
        extra="remote",
        options={"client_kwargs": _AIOHTTP_SESSION},
        tls_options=_https_tls_options,
        has_folders=False,
        unreachable_errors=_AIOHTTP_UNREACHABLE,
        invalid_errors=frozenset({"InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError"}),
    ),
    StorageBackend(
        ("s3", "s3a"),
        package="s3fs",
        extra="remote",
        # As many as the shard cache requests at once: botocore's default of 10 makes the others wait.
        options={"config_kwargs": {"max_pool_connections": 32}},
        tls_options=_s3_tls_options,
        atomic_uploads=True,
        modified_key="LastModified",
        refused_errors=frozenset({"NoCredentialsError"}),
        unreachable_errors=frozenset({"EndpointConnectionError", "ConnectTimeoutError"}),
        invalid_errors=frozenset({"ParamValidationError", "EndpointResolutionError"}),
        login_hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
        server_hint="AWS_ENDPOINT_URL is the server, if it is not that of AWS.",
    ),
    StorageBackend(
        ("gs", "gcs"),
        package="gcsfs",
        extra="remote",
        # The class that gcsfs registers since 2026 queries the bucket's type by gRPC, and gRPC ends a process
        # that is forked afterwards, as torch's DataLoader does (https://github.com/grpc/grpc/issues/32758).
        filesystem="gcsfs.core:GCSFileSystem",
        options={"session_kwargs": _AIOHTTP_SESSION},
        atomic_uploads=True,
        modified_key="updated",
        refused_prefixes=("Forbidden: ",),
        unreachable_errors=_AIOHTTP_UNREACHABLE,
        login_hint="Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
    ),
    StorageBackend(
        ("az", "abfs", "abfss"),
        package="adlfs",
        atomic_uploads=True,
        modified_key="last_modified",
        unreachable_errors=_AIOHTTP_UNREACHABLE,
        login_hint="Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or run `az login`.",
    ),
    StorageBackend(
        ("hf",),
        unreachable_errors=frozenset(
            {"ConnectError", "ConnectTimeout", "ProxyError", "OfflineModeIsEnabled"}
        ),
        invalid_errors=frozenset({"HFValidationError", "HfUriError", "InvalidURL", "UnsupportedProtocol"}),
        login_hint="Run `hf auth login`, or set HF_TOKEN.",
        server_hint="HF_ENDPOINT is the server, if it is not huggingface.co.",
    ),
    StorageBackend(("memory",)),
)

SCHEMES = tuple(scheme for backend in BACKENDS for scheme in backend.schemes)


def find_backend(url: str) -> StorageBackend:
    """Return the backend of a URL; a conservative default if the scheme is not in the table.

    >>> find_backend("s3://bucket/raw").install_command
    "pip install 'avdata[remote]'"
    """
    scheme = url.partition("://")[0]
    rows = (backend for backend in BACKENDS if scheme in backend.schemes)
    return next(rows, StorageBackend((scheme,), modified_key="mtime"))


def check_has_folders(url: str) -> None:
    """Check that folders of a service can be listed and written.

    Raises:
        UsageError: the URL is that of a web server, or impossible.
    """
    check_url(url)
    if not find_backend(url).has_folders:
        msg = f"A web server sends single files and has no folders to list or to write: {redact_url(url)}."
        raise UsageError(msg, hint="Use a folder of this machine or the URL of an object store")


def open_client(backend: StorageBackend, url: str) -> tuple[Any, str]:
    """Return the backend's fsspec file system and the path of `url` in it."""
    check_url(url)
    import fsspec  # noqa: PLC0415

    configured = {name for scheme in backend.schemes for name in fsspec.config.conf.get(scheme, {})}
    options = {**backend.options, **backend.tls_options()}
    options = {name: value for name, value in options.items() if name not in configured}
    if backend.filesystem is None:
        files, path = fsspec.core.url_to_fs(url, **options)
        return files, path
    module, _, name = backend.filesystem.partition(":")
    client = getattr(importlib.import_module(module), name)
    return client(**options), client._strip_protocol(url)


def is_missing(error: Exception) -> bool:
    """Whether an error means that the file does not exist: all clients raise one of these."""
    return isinstance(error, FileNotFoundError) or not _MISSING_STATUSES.isdisjoint(_statuses(error))


def is_refused(error: Exception) -> bool:
    """Whether an error of any backend means that access is denied."""
    named = any(
        type(error).__name__ in backend.refused_errors or str(error).startswith(backend.refused_prefixes)
        for backend in BACKENDS
    )
    return named or isinstance(error, PermissionError) or not _REFUSED_STATUSES.isdisjoint(_statuses(error))


def is_unreachable(error: Exception) -> bool:
    """Whether an error of any backend means that no connection to the server was made."""
    return any(type(error).__name__ in backend.unreachable_errors for backend in BACKENDS)


def is_invalid(error: Exception) -> bool:
    """Whether an error of any backend means that no request is possible: a URL, name or setting is invalid.

    The subclasses of `ValueError` do not count: a broken answer is a `JSONDecodeError`.
    """
    return type(error) is ValueError or any(
        type(error).__name__ in backend.invalid_errors for backend in BACKENDS
    )


def _statuses(error: Exception) -> set[int]:
    """Return the HTTP statuses in the attributes that the clients of http, gs, az and hf use."""
    values = [getattr(error, name, None) for name in ("status", "code", "status_code")]
    values.append(getattr(getattr(error, "response", None), "status_code", None))
    return {status for status in values if isinstance(status, int)}
