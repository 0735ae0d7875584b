"""Network settings of the environment: proxies, certificate authorities and logins.

docs/network.md lists them. The variables are those of curl and requests; this module adds what a library
leaves out, so that every client of avdata reads them alike.
"""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from avdata.errors import UsageError
from avdata.storage.atomic import atomic_write
from avdata.storage.paths import cache_dir

logger = logging.getLogger(__name__)

CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

_DEFAULT_PORTS = {"http": 80, "https": 443}


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts the authorities of the system, of certifi and of the environment.

    Raises:
        UsageError: a variable names a file or folder without certificates.
    """
    context = ssl.create_default_context()
    for _ in _load_authorities(context):
        pass
    return context


def has_own_authorities() -> bool:
    """Return whether the environment names certificate authorities."""
    return any(os.environ.get(variable) for variable in CERTIFICATE_VARIABLES)


def certificate_bundle() -> str | None:
    """Return a PEM file of the authorities, for clients without contexts; None if no variable is set.

    Raises:
        UsageError: a variable names a file or folder without certificates.
        DiskError: the cache is full or not writable.
    """
    if not has_own_authorities():
        return None
    files = [Path(ssl.get_default_verify_paths().openssl_cafile)]
    files += _load_authorities(ssl.create_default_context())
    content = b"\n".join(file.read_bytes() for file in files if file.is_file())
    path = cache_dir() / "certificates" / f"{hashlib.sha256(content).hexdigest()[:16]}.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    return str(path)


def _load_authorities(context: ssl.SSLContext) -> Iterator[Path]:
    """Yield each file of certificates after it is loaded."""
    from requests.utils import DEFAULT_CA_BUNDLE_PATH  # noqa: PLC0415

    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    yield Path(DEFAULT_CA_BUNDLE_PATH)
    for variable in CERTIFICATE_VARIABLES:
        value = os.environ.get(variable, "")
        for location in filter(None, value.split(os.pathsep) if variable == "SSL_CERT_DIR" else [value]):
            path = Path(location)
            # Each file, since OpenSSL finds those of a folder only by the names that c_rehash gives.
            files = sorted({file.resolve() for file in path.iterdir()}) if path.is_dir() else [path]
            loaded = [file for file in files if _load(context, file)]
            if not loaded:
                msg = f"{variable} is not a file or folder of certificates: {location}."
                raise UsageError(msg, hint=f"Set {variable} to a PEM file, or unset it.")
            yield from loaded


def _load(context: ssl.SSLContext, file: Path) -> bool:
    try:
        context.load_verify_locations(file)
    except OSError:
        return False
    return True


def proxies_for(url: str) -> dict[str, str]:
    """Return the environment's proxies by scheme, or `all`; none if `NO_PROXY` excludes the URL's host."""
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    if not excluded:
        from requests.utils import get_environ_proxies  # noqa: PLC0415  # the system's exceptions, too

        return get_environ_proxies(url)
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    entries = (entry.strip().lower() for entry in excluded.split(","))
    return {} if any(_matches(entry, parts.hostname or "", port) for entry in entries) else getproxies()


def _matches(entry: str, host: str, port: int | None) -> bool:
    """Return whether an entry of `NO_PROXY` matches: a domain, address or network, with or without port.

    >>> _matches("10.0.0.0/8", "10.1.2.3", 80), _matches("[::1]:8080", "::1", 443)
    (True, False)
    """
    name, only_port = entry, ""
    if entry.startswith("["):
        name, _, only_port = entry[1:].partition("]")
    elif entry.count(":") == 1:
        name, _, only_port = entry.partition(":")
    if only_port.lstrip(":") not in ("", str(port)):
        return False
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:
        domain = name.removeprefix("*").removeprefix(".")
        return name == "*" or (domain != "" and (host == domain or host.endswith(f".{domain}")))


def url_login(url: str) -> str | None:
    """Return the `Authorization` for the user name and password in a URL; None if it has neither.

    >>> url_login("https://me:p%40ss@example.org/a.zip")
    'Basic bWU6cEBzcw=='
    """
    parts = urlsplit(url)
    if not (parts.username or parts.password):
        return None
    return basic_login(unquote(parts.username or ""), unquote(parts.password or ""))


def netrc_login(url: str) -> str | None:
    """Return the `Authorization` for the login of a host in `~/.netrc`, or in the file of `NETRC`."""
    from netrc import NetrcParseError  # noqa: PLC0415

    from requests.utils import get_netrc_auth  # noqa: PLC0415

    try:
        login = get_netrc_auth(url, raise_errors=True)
    except (NetrcParseError, OSError) as error:
        logger.warning("Cannot read the logins in netrc: %s", error)
        return None
    return basic_login(*login) if login else None


def basic_login(user: str, password: str) -> str:
    """Return the `Authorization` for a user name and password, in UTF-8 (RFC 7617)."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
