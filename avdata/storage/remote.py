"""Access to remote storage through fsspec, whose clients find endpoints and credentials themselves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError, UsageError
from avdata.storage.backends import SCHEMES, find_backend, open_client
from avdata.storage.paths import cache_dir

_SECRETS = re.compile(r"(https?://)(?:[^/@\s]*@)?([^?\s'\")]*)(?:\?[^\s'\")]*[^\s'\").,:;])?")


def is_url(location: object) -> bool:
    """Whether a location is a URL rather than a path.

    >>> is_url("s3://bucket/set"), is_url("out/set")
    (True, False)
    """
    return "://" in str(location)


def local_mirror_dir(url: str, kind: str) -> Path:
    """Return the cache folder of this machine for the files of a URL.

    Args:
        url: URL of a folder.
        kind: subfolder of the cache, such as `mirror`.
    """
    return cache_dir() / kind / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Raise `AvdataError` in place of the exceptions of a file system.

    Raises:
        AvdataError: the file system raised an exception.
        UsageError: the URL's scheme is unknown, or its client is not installed.
    """
    try:
        yield
    except AvdataError:
        raise
    except (ImportError, ValueError) as error:
        msg = redact_url(f"{url} cannot be opened ({error}).")
        command = find_backend(url).install_command if isinstance(error, ImportError) else None
        raise UsageError(msg, hint=command or f"Supported URL schemes: {', '.join(SCHEMES)}.") from error
    except Exception as error:  # each file system has its own exceptions
        msg = redact_url(f"{url} cannot be read or written ({type(error).__name__}: {error}).")
        hint = "Check the URL, the credentials and the connection. Finished shards are kept."
        raise AvdataError(msg, hint=hint) from error


def relative_sizes(base: str, listing: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the size in bytes of each file of a listing, by its path below `base`.

    Web consoles mark an empty folder by an object whose name ends in a slash. It is left out.

    Args:
        base: folder that was listed.
        listing: result of `find(base, detail=True)` of an fsspec file system.
    """
    sizes = {path[len(base) :].lstrip("/"): int(facts["size"]) for path, facts in listing.items()}
    return {name: size for name, size in sizes.items() if name and not name.endswith("/")}


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the URL's path in it.

    >>> open_filesystem("memory://set/train")[1]
    '/set/train'

    Raises:
        ImportError: the client is not installed.
        ValueError: the scheme is unknown.
    """
    return open_client(find_backend(url), url)


def redact_url(text: object) -> str:
    """Return a text without the user names, passwords and queries of its URLs.

    Signed links have a secret in the query.

    >>> redact_url("https://me:secret@example.org/set?signature=secret: HTTP 403")
    'https://example.org/set: HTTP 403'
    """
    return _SECRETS.sub(r"\1\2", str(text))
