"""The client of a URL: fsspec's, which finds endpoint and credentials in the usual ways."""

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


def is_url(place: object) -> bool:
    """Whether a place is a URL, and not a path.

    >>> is_url("s3://bucket/set"), is_url("out/set")
    (True, False)
    """
    return "://" in str(place)


def local_mirror_dir(url: str, kind: str) -> Path:
    """Where this node keeps what it needs of a URL."""
    return cache_dir() / kind / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn a store's errors into one sentence with what to do.

    Raises:
        AvdataError: instead of what the file system raised.
        UsageError: the URL's protocol is unknown, or its package is not installed.
    """
    try:
        yield
    except AvdataError:
        raise
    except (ImportError, ValueError) as error:
        msg = redact_url(f"{url} cannot be opened ({error})")
        command = find_backend(url).install_command if isinstance(error, ImportError) else None
        raise UsageError(msg, hint=command or f"supported URL schemes: {', '.join(SCHEMES)}") from error
    except Exception as error:  # every file system has exceptions of its own
        msg = redact_url(f"{url} cannot be read or written ({type(error).__name__}: {error})")
        hint = "check the URL, your credentials and the connection; finished shards are kept"
        raise AvdataError(msg, hint=hint) from error


def relative_sizes(base: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of each file by its path below a place, of what a file system's `find` found there.

    Consoles mark a folder that they make by an empty object whose name ends in a slash; it is no file.
    """
    sizes = {path[len(base) :].lstrip("/"): int(facts["size"]) for path, facts in found.items()}
    return {name: size for name, size in sizes.items() if name and not name.endswith("/")}


def open_filesystem(url: str) -> tuple[Any, str]:
    """A file system and the URL's path in it.

    >>> open_filesystem("memory://set/train")[1]
    '/set/train'

    Raises:
        ImportError: the client is not installed.
        ValueError: nobody knows the protocol.
    """
    return open_client(find_backend(url), url)


def redact_url(text: object) -> str:
    """A text as people may see it, with no name and password in its web addresses.

    >>> redact_url("https://me:secret@example.org/set cannot be read")
    'https://example.org/set cannot be read'
    """
    return re.sub(r"(https?://)[^/@\s]*@", r"\1", str(text))
