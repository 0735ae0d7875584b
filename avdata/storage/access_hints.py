"""Hints for refused or failed access to remote storage: what is wrong, and which setting corrects it."""

from __future__ import annotations

from collections.abc import Iterator

from avdata.errors import redact_url
from avdata.storage.backends import find_backend, is_invalid, is_missing, is_refused, is_unreachable

_NO_LOGIN = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"})

_UNKNOWN_KEY = ("InvalidAccessKeyId", "InvalidToken", "ExpiredToken")

_WRONG_SECRET = ("SignatureDoesNotMatch",)

_NO_BUCKET = ("NoSuchBucket", "bucket does not exist")


def access_hint(url: str, error: BaseException) -> str:
    """Return what the user can do about an error of a storage client.

    Args:
        url: URL that was read or written.
        error: error of the client.
    """
    backend = find_backend(url)
    bucket = "/".join(url.split("/")[:3])
    causes = [cause for cause in _causes(error) if isinstance(cause, Exception)]
    texts = [f"{type(cause).__name__}: {cause}" for cause in causes]
    no_login = any(text.partition(":")[0] in _NO_LOGIN for text in texts)
    login, server = backend.login_hint, backend.server_hint
    cases = (
        (no_login, f"No credentials were found. {login}"),
        (_has(texts, _UNKNOWN_KEY), f"The server does not know the access key, or it expired. {login}"),
        (_has(texts, _WRONG_SECRET), f"The secret key does not belong to the access key. {login}"),
        (_has(texts, _NO_BUCKET), f"Create the bucket {bucket}, or correct its name. {server}"),
        (any(map(is_refused, causes)), f"The credentials give no access to {bucket}. {login}"),
        (any(map(is_missing, causes)), "Check the URL."),
        (any(map(is_unreachable, causes)), f"Check the network, the proxy and the URL. {server}"),
        (any(map(is_invalid, causes)), f"Correct the URL, or the address of the proxy or server. {server}"),
    )
    general = "Check the URL, the credentials and the connection. Finished shards are kept."
    return redact_url(next((hint for applies, hint in cases if applies), general)).rstrip()


def _has(texts: list[str], codes: tuple[str, ...]) -> bool:
    return any(code in text for code in codes for text in texts)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
