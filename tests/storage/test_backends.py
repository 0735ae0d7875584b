"""Table of storage backends."""

from __future__ import annotations

import socket
import ssl
import threading
from importlib.metadata import requires
from pathlib import Path

import fsspec
import pytest
import trustme
from support.http_server import running_server

from avdata.errors import UsageError
from avdata.storage import backends
from avdata.storage.backends import (
    BACKENDS,
    StorageBackend,
    find_backend,
    is_missing,
    is_refused,
    is_unreachable,
    open_client,
)
from avdata.storage.network import certificate_bundle
from avdata.storage.remote import storage_errors


class StatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def named(name: str) -> Exception:
    return type(name, (Exception,), {})("failed")  # type: ignore[no-any-return]


def test_each_scheme_belongs_to_one_backend() -> None:
    schemes = [scheme for backend in BACKENDS for scheme in backend.schemes]
    assert len(set(schemes)) == len(schemes)
    assert all(find_backend(f"{scheme}://bucket/x") in BACKENDS for scheme in schemes)


def test_extras_of_backends_install_their_package() -> None:
    requirements = requires("avdata") or []
    for backend in BACKENDS:
        if backend.extra:
            marker = f'extra == "{backend.extra}"'
            assert any(
                line.startswith(f"{backend.package}>") and line.endswith(marker) for line in requirements
            ), backend


def test_unknown_scheme_promises_no_atomic_uploads() -> None:
    assert not find_backend("sftp://host/x").atomic_uploads


def test_open_client_keeps_the_settings_of_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://example.org/set"
    mine = {"client_kwargs": {"headers": {"X-Team": "speech"}}}
    assert open_client(find_backend(url), url)[0].client_kwargs == {"trust_env": True}
    monkeypatch.setitem(fsspec.config.conf, "https", mine)
    assert open_client(find_backend(url), url)[0].client_kwargs == mine["client_kwargs"]


def test_errors_are_classified() -> None:
    assert is_missing(FileNotFoundError())
    assert is_missing(StatusError(404))
    assert is_refused(PermissionError())
    assert is_refused(StatusError(403))
    assert is_refused(OSError("Forbidden: bucket/x"))
    assert is_refused(named("NoCredentialsError"))
    assert is_unreachable(named("EndpointConnectionError"))
    assert not any(classify(StatusError(503)) for classify in (is_missing, is_refused, is_unreachable))


def test_a_new_backend_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = StorageBackend(
        ("box",), package="boxfs", unreachable_errors=frozenset({"BoxOffline"}), atomic_uploads=True
    )
    monkeypatch.setattr(backends, "BACKENDS", (*BACKENDS, row))
    assert find_backend("box://folder").atomic_uploads
    assert is_unreachable(named("BoxOffline"))
    with pytest.raises(UsageError) as caught, storage_errors("box://folder"):
        raise ImportError("no module named boxfs")
    assert caught.value.hint == "pip install boxfs"


@pytest.mark.parametrize("as_folder", [False, True])
def test_s3_client_trusts_the_certificate_authorities_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_folder: bool
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ours.crt"))
    assert certificate_bundle() is None
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path if as_folder else tmp_path / "ours.crt"))
    bundle = open_client(find_backend("s3://b"), "s3://b/x")[0].client_kwargs["verify"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(
            target=lambda: context.wrap_socket(listener.accept()[0], server_side=True).close()
        )
        server.start()
        client = ssl.create_default_context(cafile=bundle)
        with socket.create_connection(listener.getsockname()) as plain:
            client.wrap_socket(plain, server_hostname="127.0.0.1").close()
        server.join(60)
    # The public authorities are trusted besides.
    assert len(client.get_ca_certs()) > 100
    assert certificate_bundle() == bundle


def test_https_client_trusts_the_certificate_authorities_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ours.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ours.crt"))
    with running_server({"f": b"1"}, tls=context) as server:
        files, path = open_client(find_backend(server.url), f"{server.url}/f")
        assert files.cat_file(path) == b"1"


def test_s3_client_prefers_the_certificates_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/aws.pem")
    assert "verify" not in open_client(find_backend("s3://c"), "s3://c/x")[0].client_kwargs
