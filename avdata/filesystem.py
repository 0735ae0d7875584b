"""The client of a URL: fsspec's, which finds endpoint and credentials in the usual ways."""

from __future__ import annotations

import re
from typing import Any


def filesystem_of(url: str) -> tuple[Any, str]:
    """A file system and the URL's path in it.

    >>> filesystem_of("memory://set/train")[1]
    '/set/train'

    Raises:
        ImportError: the client is not installed.
        ValueError: nobody knows the protocol.
    """
    if url.partition("://")[0] in {"gs", "gcs"}:
        from gcsfs.core import GCSFileSystem  # noqa: PLC0415

        # What gcsfs registers since 2026 asks by gRPC what kind of bucket it is, and gRPC ends a process that
        # is forked after that, as torch's DataLoader does (https://github.com/grpc/grpc/issues/32758).
        return GCSFileSystem(), GCSFileSystem._strip_protocol(url)
    import fsspec  # noqa: PLC0415

    files, path = fsspec.core.url_to_fs(url)
    return files, path


def shown(text: object) -> str:
    """A text as people may see it, with no name and password in its web addresses.

    >>> shown("https://me:secret@example.org/set cannot be read")
    'https://example.org/set cannot be read'
    """
    return re.sub(r"(https?://)[^/@\s]*@", r"\1", str(text))
