"""Access to remote storage through fsspec, whose clients find endpoints and credentials themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError, UsageError, redact_url
from avdata.storage.access_hints import access_hint
from avdata.storage.backends import SCHEMES, find_backend, open_client
from avdata.storage.paths import cache_dir


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
        hint = f"Supported URL schemes: {', '.join(SCHEMES)}."
        if isinstance(error, ImportError):
            hint = find_backend(url).install_command or hint
        elif url.partition("://")[0] in SCHEMES:
            hint = access_hint(url, error)
        raise UsageError(msg, hint=hint) from error
    except Exception as error:  # each file system has its own exceptions
        msg = redact_url(f"{url} cannot be read or written ({type(error).__name__}: {error}).")
        raise AvdataError(msg, hint=access_hint(url, error)) from error


def relative_path(base: str, path: str) -> str:
    """Return the path of a listed file below a folder; empty for the folder itself and for folder markers.

    >>> relative_path("bucket/raw", "bucket/raw/a/b.wav"), relative_path("bucket/raw", "bucket/raw/a/")
    ('a/b.wav', '')
    """
    name = path[len(base) :].lstrip("/")
    return "" if name.endswith("/") else name


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the URL's path in it.

    >>> open_filesystem("memory://set/train")[1]
    '/set/train'

    Raises:
        ImportError: the client is not installed.
        ValueError: the scheme is unknown.
    """
    return open_client(find_backend(url), url)


def pin_commit(url: str, files: Any) -> str:
    """Return the URL of a Hugging Face repository at the commit that its branch or tag has now.

    A repository may be published again while it is read. Other URLs are returned unchanged.

    Args:
        url: URL of a folder.
        files: Its file system.
    """
    if find_backend(url).schemes[0] != "hf":
        return url
    place = files.resolve_path(files._strip_protocol(url))
    if not hasattr(place, "repo_id"):  # a storage bucket, which has no commits
        return url
    info = files._api.repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision)
    return f"hf://{replace(place, revision=info.sha, _raw_revision=None).unresolve()}"
