"""Table of storage backends."""

from __future__ import annotations

from importlib.metadata import requires

import fsspec
import pytest

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
