"""Check of a Ray cluster before work begins: Ray itself retries a wrong address for minutes."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from avdata.errors import AvdataError, UsageError

PROBE_TIMEOUT_S = 5.0


def check_cluster(address: str) -> None:
    """Check that Ray is installed, and that a server listens at the address of the cluster.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT`, or `auto` for the one in RAY_ADDRESS, else the one that this
            machine joined last.

    Raises:
        UsageError: Ray is not installed, or the address is malformed.
        AvdataError: nothing listens there.
    """
    if find_spec("ray") is None:
        msg = "Ray is not installed."
        raise UsageError(msg, hint="Run: pip install 'avdata[ray]'")
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return
    where, origin = _resolve(address)
    if where is None:
        return
    try:
        host, port = _host_and_port(where)
        socket.create_connection((host, port), PROBE_TIMEOUT_S).close()
    except ValueError as error:
        msg = f"Invalid address of a Ray cluster in {origin}: {where!r}."
        raise UsageError(msg, hint="The form is HOST:PORT, ray://HOST:PORT or auto.") from error
    except OSError as error:
        msg = f"No Ray cluster at {where!r} ({origin}): {error.strerror or error}."
        raise AvdataError(msg, hint="Run `ray start --head`, or use --ray-address.") from error


def _resolve(address: str) -> tuple[str | None, str]:
    """Return the address to probe and where it comes from; None if Ray decides it."""
    if address == "local":
        return None, ""
    if address != "auto":
        return address, "--ray-address"
    if variable := os.environ.get("RAY_ADDRESS"):
        return (None if variable in ("auto", "local") else variable), "RAY_ADDRESS"
    joined = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    try:
        return joined.read_text(encoding="utf-8").strip() or None, str(joined)
    except OSError:
        return None, ""


def _host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    >>> _host_and_port("head:6379"), _host_and_port("ray://[::1]:10001")
    (('head', 6379), ('::1', 10001))
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError(address)
    return parts.hostname, parts.port
