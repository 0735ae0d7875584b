"""Hugging Face Hub client: file listings, retries, and errors without tokens."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from avdata.errors import AvdataError, UsageError
from avdata.storage.atomic import full_disk_error
from avdata.storage.hashing import hash_file
from avdata.storage.retry import retry

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

REPO_TYPE = "dataset"

MAX_ATTEMPTS = 4

INITIAL_DELAY_S = 1.0  # doubled after each failure

PING_TIMEOUT_S = 5.0  # for the first response

_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}|(?<=Bearer )\S+")

_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


class HubUnreachableError(AvdataError):
    """The Hub does not respond."""


def check_repo(repo: str) -> str:
    """Return the name of a repository as `user/name`.

    >>> check_repo("hf://datasets/me/cremad")
    'me/cremad'

    Raises:
        UsageError: Invalid name.
    """
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # noqa: PLC0415

    plain = repo.removeprefix("hf://").removeprefix("datasets/")
    with suppress(HFValidationError):
        validate_repo_id(plain)
        if "/" in plain:
            return plain
    msg = f"Invalid repository name {repo!r}."
    raise UsageError(msg, hint="Use the form user/name")


def redact_tokens(text: str, *secrets: str | None) -> str:
    """Replace the given secrets, and everything that looks like a token, in a text.

    >>> redact_tokens("refused: hf_abcdefgh1234 (Bearer xyz)")
    'refused: [token] (Bearer [token]'
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[token]")
    return _TOKEN.sub("[token]", text)


def contains_token(text: str, token: str | None) -> bool:
    """Return whether a text contains the active token or another Hub token.

    >>> contains_token("the bearer of good news writes hf_hub_download", None)
    False
    """
    return bool(token and token in text) or re.search(r"\bhf_[A-Za-z0-9]{30,}", text) is not None


def active_token(token: str | None) -> str | None:
    """Return the token that the client sends."""
    from huggingface_hub import get_token  # noqa: PLC0415

    return token or get_token()


@contextmanager
def hub_errors(repo: str, token: str | None) -> Iterator[None]:
    """Convert the client's errors to `AvdataError` with a hint and without tokens.

    Raises:
        AvdataError: The client raised an error.
    """
    try:
        yield
    except AvdataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (full := full_disk_error(error, error.filename or repo)):
            raise full from None
        status = _status(error)
        if status is None and not _is_transport_error(error) and not isinstance(error, (OSError, ValueError)):
            raise
        reason = redact_tokens(_first_line(error), token)
        msg = f"{_status_message(status, error)} for {repo}: {reason}"
        # Not `from error`: its text may contain the token.
        raise AvdataError(msg, hint=_status_hint(status)) from None


_STATUS_MESSAGES = {
    401: "Invalid Hub token",
    403: "Permission denied by the Hub",
    404: "Unknown repository or revision, or no access to it",
    409: "Conflict with a concurrent change of the repository",
    412: "Conflict with a concurrent change of the repository",
    429: "Rate limit of the Hub exceeded",
}


def _status_message(status: int | None, error: Exception) -> str:
    if status is not None:
        return _STATUS_MESSAGES.get(status, f"Hub error {status}")
    if isinstance(error, ValueError):
        return "Invalid request to the Hub"
    return "Connection to the Hub failed"


def _status_hint(status: int | None) -> str:
    if status in (401, 403):
        return (
            "Log in with `hf auth login` and a token with write access, then run the command again to resume"
        )
    if status == 404:
        return "Check the name and `hf auth whoami`"
    return "Run the same command again: it does not repeat finished uploads"


def check_reachable(api: Any, repo: str) -> None:
    """Check that the Hub responds, whether or not the repository exists.

    Unlike later requests, this one is not retried for long, because no work is lost.

    Raises:
        HubUnreachableError: The Hub does not respond.
    """
    from huggingface_hub.errors import RepositoryNotFoundError  # noqa: PLC0415

    def ping() -> None:
        try:
            api.repo_info(repo, repo_type=REPO_TYPE, timeout=PING_TIMEOUT_S)
        except RepositoryNotFoundError:
            return
        except Exception as error:
            if "Timeout" in type(error).__name__:
                raise _unreachable(api, error) from None
            raise

    try:
        call_hub(ping, unanswered=2)
    except Exception as error:
        if _status(error) is None and _is_transport_error(error):
            raise _unreachable(api, error) from None
        raise


def _unreachable(api: Any, error: Exception) -> HubUnreachableError:
    msg = f"Cannot reach the Hub at {api.endpoint}: {_first_line(error)}"
    hint = "Check the network, the proxy (HTTPS_PROXY), HF_ENDPOINT and HF_HUB_OFFLINE"
    return HubUnreachableError(msg, hint=hint)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def call_hub(action: Callable[[], _Result], *, unanswered: int = MAX_ATTEMPTS) -> _Result:
    """Call `action`, retrying on network errors and on HTTP 408, 425, 429 and 5xx; honor `Retry-After`.

    Args:
        action: Function that is safe to call again.
        unanswered: Maximum number of attempts if there is no response.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415

    def should_retry(error: Exception, attempt: int) -> bool:
        status = _status(error)
        if status is not None:
            return status in _RETRYABLE_STATUSES and attempt < MAX_ATTEMPTS
        is_offline = isinstance(error, OfflineModeIsEnabled)
        return _is_transport_error(error) and not is_offline and attempt < unanswered

    def warn(error: Exception, delay: float) -> None:
        cause = _status(error) or type(error).__name__
        log.warning("Hub request failed (%s); retrying in %.0f s", cause, delay)

    return retry(action, should_retry=should_retry, initial_delay_s=INITIAL_DELAY_S, on_retry=warn)


def _status(error: Exception) -> int | None:
    """Return the HTTP status, also from the cause of a wrapper such as LocalEntryNotFoundError."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_transport_error(error: Exception) -> bool:
    # The package depends on the version of huggingface-hub: httpx, httpx2 or hf_xet. Version 1.0 wraps the
    # error in a RuntimeError.
    packages = {kind.__module__.partition(".")[0] for cause in _causes(error) for kind in type(cause).__mro__}
    return bool(packages & {"httpx", "httpx2", "httpcore", "hf_xet"}) or isinstance(error, ConnectionError)


def list_repo_files(api: Any, repo: str, revision: str) -> dict[str, RepoFile]:
    """Return the files of a repository at a revision, by path; empty if there is no such revision."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415
    from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415

    def list_files() -> dict[str, RepoFile]:
        entries = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=REPO_TYPE)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    try:
        return call_hub(list_files)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}


def is_same(remote: RepoFile | None, content: bytes | Path, sha256: str | None = None) -> bool:
    """Return whether a file in a repository has this content.

    Args:
        remote: The file in the repository, None if it does not exist.
        content: The bytes, or a local file with them.
        sha256: Their checksum if known; it saves reading the file.
    """
    from huggingface_hub.utils.sha import git_hash  # noqa: PLC0415

    size = content.stat().st_size if isinstance(content, Path) else len(content)
    if remote is None or remote.size != size:
        return False
    if remote.lfs is not None:
        if sha256 is None:
            sha256 = hash_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        return bool(remote.lfs.sha256 == sha256)
    return bool(remote.blob_id == git_hash(content.read_bytes() if isinstance(content, Path) else content))


def shard_metadata(info: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entry of each shard in dataset.json, by path."""
    return {shard["path"]: shard for split in info["splits"].values() for shard in split["shards"]}
