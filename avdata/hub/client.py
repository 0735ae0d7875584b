"""Talking to the Hugging Face Hub: what lies there, patience with its faults, and errors without secrets."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from avdata.errors import AvdataError, UsageError
from avdata.storage.hashing import hash_file
from avdata.storage.retry import retry

REPO_TYPE = "dataset"

MAX_ATTEMPTS = 4

INITIAL_DELAY_S = 1.0  # seconds; doubled after each failure

PING_TIMEOUT_S = 5.0  # seconds, for the Hub's first answer

_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}|(?<=Bearer )\S+")

_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


class HubUnreachableError(AvdataError):
    """Nothing answers at the Hub's address."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository: its bytes, and its SHA-256 (LFS) or git blob id (small files)."""

    size: int
    blob: str
    sha256: str | None


def check_repo(repo: str) -> str:
    """The repository's name, `user/name`.

    >>> check_repo("hf://datasets/me/cremad")
    'me/cremad'

    Raises:
        UsageError: it is not such a name.
    """
    plain = repo.removeprefix("hf://").removeprefix("datasets/")
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", plain) or ".." in plain or "--" in plain:
        msg = f"{repo!r} is not the name of a repository"
        raise UsageError(msg, hint="write it as user/name")
    return plain


def redact_tokens(text: str, *secrets: str | None) -> str:
    """A text without tokens: those given, and what looks like one.

    >>> redact_tokens("refused: hf_abcdefgh1234 (Bearer xyz)")
    'refused: [token] (Bearer [token]'
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[token]")
    return _TOKEN.sub("[token]", text)


def contains_token(text: str, token: str | None) -> bool:
    """Whether a text that is to be published holds the token in use, or another of the Hub's.

    >>> contains_token("the bearer of good news writes hf_hub_download", None)
    False
    """
    return bool(token and token in text) or re.search(r"\bhf_[A-Za-z0-9]{30,}", text) is not None


def active_token(token: str | None) -> str | None:
    """The token that the client would send."""
    from huggingface_hub import get_token  # noqa: PLC0415

    return token or get_token()


@contextmanager
def hub_errors(repo: str, token: str | None) -> Iterator[None]:
    """Turn the client's errors into one sentence with what to do, and no token in it.

    Raises:
        AvdataError: instead of whatever the client raised.
    """
    try:
        yield
    except AvdataError:
        raise
    except Exception as error:
        status = _status(error)
        if status is None and not _is_transport_error(error) and not isinstance(error, (OSError, ValueError)):
            raise
        said = redact_tokens(_first_line(error), token)
        msg = f"{repo}: {_status_message(status, error)} ({said})"
        # Not `from error`: its own text may carry what was just left out.
        raise AvdataError(msg, hint=_status_hint(status)) from None


_STATUS_MESSAGES = {
    401: "the Hub refuses the token",
    403: "the Hub does not allow this",
    404: "there is no such repository or revision, or the token does not see it",
    409: "somebody else changed the repository at the same time",
    412: "somebody else changed the repository at the same time",
    429: "the Hub asks for fewer requests",
}


def _status_message(status: int | None, error: Exception) -> str:
    if status is not None:
        return _STATUS_MESSAGES.get(status, f"the Hub answered {status}")
    if isinstance(error, ValueError):
        return "the Hub's client refuses this"
    return "the connection to the Hub broke"


def _status_hint(status: int | None) -> str:
    if status in (401, 403):
        return "log in with `hf auth login`, with a token that may write here; then the same command goes on"
    if status == 404:
        return "check the name, and `hf auth whoami`"
    return "give the same command again: what was uploaded is not uploaded twice"


def check_reachable(api: Any, repo: str) -> None:
    """See that the Hub answers, before anything long is begun; whether the repository is there is no matter.

    A connection that breaks later is waited for, because work would be lost. Here there is none to lose.

    Raises:
        HubUnreachableError: there is no answer.
    """
    from huggingface_hub.errors import RepositoryNotFoundError  # noqa: PLC0415

    def ask() -> None:
        try:
            api.repo_info(repo, repo_type=REPO_TYPE, timeout=PING_TIMEOUT_S)
        except RepositoryNotFoundError:
            return
        except Exception as error:
            if "Timeout" in type(error).__name__:
                raise _unreachable(api, error) from None
            raise

    try:
        call_hub(ask, unanswered=2)
    except Exception as error:
        if _status(error) is None and _is_transport_error(error):
            raise _unreachable(api, error) from None
        raise


def _unreachable(api: Any, error: Exception) -> HubUnreachableError:
    msg = f"the Hub cannot be reached at {api.endpoint} ({_first_line(error)})"
    hint = "check the network and the proxy (HTTPS_PROXY), HF_ENDPOINT and HF_HUB_OFFLINE"
    return HubUnreachableError(msg, hint=hint)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def call_hub(action: Callable[[], _Result], *, unanswered: int = MAX_ATTEMPTS) -> _Result:
    """The action's result; what the network or the Hub's load broke is tried again, as long as they ask.

    Args:
        action: what can be done twice.
        unanswered: attempts while there is no answer at all.
    """

    def should_retry(error: Exception, attempt: int) -> bool:
        status = _status(error)
        if status is not None:
            return status in _RETRYABLE_STATUSES and attempt < MAX_ATTEMPTS
        return _is_transport_error(error) and not _is_offline(error) and attempt < unanswered

    def warn(error: Exception, delay: float) -> None:
        cause = _status(error) or type(error).__name__
        log.warning("the Hub failed (%s); trying again in %.0f s", cause, delay)

    return retry(action, should_retry=should_retry, initial_delay_s=INITIAL_DELAY_S, on_retry=warn)


def _status(error: Exception) -> int | None:
    """The HTTP status, also when a wrapper such as LocalEntryNotFoundError hides it."""
    for found in _causes(error):
        status = getattr(getattr(found, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_transport_error(error: Exception) -> bool:
    # httpx, httpx2 or xet, by version of huggingface-hub, and in 1.0 the cause of a RuntimeError: known by
    # where they come from.
    chain = list(_causes(error))
    homes = {kind.__module__.partition(".")[0] for one in chain for kind in type(one).__mro__}
    return bool(homes & {"httpx", "httpx2", "httpcore", "hf_xet"}) or isinstance(error, ConnectionError)


def _is_offline(error: Exception) -> bool:
    """Whether the user told the client not to use the network."""
    return type(error).__name__ == "OfflineModeIsEnabled"


def list_repo_files(api: Any, repo: str, revision: str) -> dict[str, RemoteFile]:
    """The files of a repository at a revision, by path; of one that has no such revision, none."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415
    from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415

    def look() -> dict[str, RemoteFile]:
        entries = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=REPO_TYPE)
        return {
            entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    try:
        return call_hub(look)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}


def is_same(there: RemoteFile | None, content: bytes | Path, sha256: str | None = None) -> bool:
    """Whether a file in a repository holds these bytes.

    Args:
        there: the file in the repository, if it is there.
        content: the bytes, or the file that has them.
        sha256: their checksum where it is known, which saves reading the file.
    """
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    if there is None or there.size != size:
        return False
    if there.sha256 is not None:
        if sha256 is None:
            sha256 = hash_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        return there.sha256 == sha256
    data = content.read_bytes() if isinstance(content, Path) else content
    # A git blob's id; nothing is secured by it.
    return there.blob == hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest()


def shard_metadata(info: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What dataset.json says of each shard, by path."""
    return {shard["path"]: shard for split in info["splits"].values() for shard in split["shards"]}
