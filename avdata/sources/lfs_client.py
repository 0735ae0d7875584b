"""Client of a git-LFS server: request links in batches ahead of use, and renew those that expired.

The API is https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from avdata.sources.hosts import HostBusyError
from avdata.sources.types import FileRequest, ResolvedUrl, TransferError

if TYPE_CHECKING:
    from avdata.sources.limited_client import LimitedClient

_LFS_TYPE = "application/vnd.git-lfs+json"

_BATCH = 100

_MAX_ANSWER_BYTES = 16 << 20

_MARGIN_S = 5.0  # a link must be valid until its request arrives

_Link = ResolvedUrl | TransferError


class LfsClient:
    """Client of one LFS store, shared by threads. One thread requests a batch; the others wait for it."""

    def __init__(self, net: LimitedClient, repository: str, files: Sequence[FileRequest]) -> None:
        self._net = net
        self._endpoint = f"{repository}/info/lfs/objects/batch"
        self._files = files
        self._positions = {file.path: number for number, file in enumerate(files)}
        self._batch = _BATCH
        self._links: dict[str, _Link] = {}
        self._requested: set[str] = set()
        self._pending: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def resolve(self, request: FileRequest) -> ResolvedUrl:
        """Return the object's link, once: a second call requests a new link.

        Raises:
            HostBusyError: the server accepts no request now.
            TransferError: the server did not answer, or does not have the object.
        """
        if not _oid(request):
            msg = "git-LFS requires the file's sha256 and size in the manifest"
            raise TransferError(msg)
        is_new = False
        while True:
            with self._lock:
                link = self._take(request, is_new=is_new)
                pending = self._pending.get(request.path)
                batch = [] if link or pending else self._next_batch(request)
            if link:
                break
            if pending:
                pending.result()
            else:
                self._request(batch)
            is_new = True
        if isinstance(link, TransferError):
            raise link
        self._prefetch(request)
        return link

    def _take(self, request: FileRequest, *, is_new: bool) -> _Link | None:
        link = self._links.pop(request.path, None)
        if isinstance(link, ResolvedUrl) and not is_new and _is_expired(link):
            # Links live shorter than a batch takes: request fewer of them ahead.
            self._batch = max(1, self._batch // 2)
            self._requested.discard(request.path)
            return None
        return link

    def _next_batch(self, request: FileRequest) -> list[FileRequest]:
        """Return the files to request: this one and, if it is new, those of its batch."""
        if request.path in self._requested:
            batch = [request]
        else:
            # Fixed limits of batches: threads reach the files of a batch in any order.
            start = self._positions[request.path] // self._batch * self._batch
            batch = [file for file in self._files[start : start + self._batch] if self._is_wanted(file)]
        future: Future[None] = Future()
        for file in batch:
            self._pending[file.path] = future
        return batch

    def _is_wanted(self, file: FileRequest) -> bool:
        link = self._links.get(file.path)
        is_expired = isinstance(link, ResolvedUrl) and _is_expired(link)
        is_new = file.path not in self._requested or is_expired
        return bool(_oid(file)) and is_new and file.path not in self._pending

    def _prefetch(self, request: FileRequest) -> None:
        """Request the next batch when half of the current one is used; `resolve` repeats failures."""
        position = self._positions[request.path] + 1
        with self._lock:
            if self._batch < _BATCH:
                return
            coming = self._files[position : position + _BATCH // 2]
            first = next((file for file in coming if self._is_wanted(file)), None)
            if first is None:
                return
            batch = self._next_batch(first)
        with suppress(TransferError, HostBusyError):
            self._request(batch)

    def _request(self, batch: Sequence[FileRequest]) -> None:
        """Request links; threads that wait for one of them get the same error."""
        future = self._pending[batch[0].path]
        links: dict[str, _Link] = {}
        error: BaseException | None = None
        try:
            links = self._post(batch)
        except BaseException as caught:
            error = caught
            raise
        finally:
            with self._lock:
                self._links.update(links)
                self._requested.update(links)
                for file in batch:
                    del self._pending[file.path]
            future.set_exception(error) if error else future.set_result(None)

    def _post(self, batch: Sequence[FileRequest]) -> dict[str, _Link]:
        objects = [{"oid": _oid(file), "size": file.bytes} for file in batch]
        request = {"operation": "download", "transfers": ["basic"], "hash_algo": "sha256", "objects": objects}
        headers = {"Accept": _LFS_TYPE, "Content-Type": _LFS_TYPE}
        body = json.dumps(request).encode()
        with self._net.open(self._endpoint, headers, method="POST", body=body) as response:
            answer = response.read(_MAX_ANSWER_BYTES)
        try:
            links = dict(_links(json.loads(answer)["objects"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            msg = f"not a git-LFS server: {self._endpoint}"
            raise TransferError(msg) from error
        absent = TransferError("object not found on the git-LFS server")
        return {file.path: links.get(_oid(file), absent) for file in batch}


def _oid(file: FileRequest) -> str:
    algorithm, _, digest = (file.checksum or "").partition(":")
    return digest if algorithm == "sha256" and file.bytes is not None else ""


def _links(objects: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Link]]:
    for entry in objects:
        yield entry["oid"], _link(entry)


def _link(entry: Mapping[str, Any]) -> _Link:
    if "error" in entry:
        code = int(entry["error"].get("code", 0))
        return TransferError(
            f"git-LFS: {entry['error'].get('message', code)}", retryable=code >= 500, status=code
        )
    action, size = entry["actions"]["download"], entry.get("size")
    url, headers = action["href"], action.get("header") or {}
    texts = [url, *headers.keys(), *headers.values()]
    if not all(isinstance(text, str) for text in texts) or not isinstance(size, int | None):
        raise TypeError
    return ResolvedUrl(url, headers, bytes=size, expires_at=_expiry(action))


def _expiry(action: Mapping[str, Any]) -> float | None:
    """Return the POSIX time at which a link expires. `expires_in` counts more: clocks may differ."""
    if action.get("expires_in"):
        return time.time() + float(action["expires_in"])
    with suppress(ValueError):
        moment = datetime.fromisoformat(action.get("expires_at") or "")
        expiry = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        return expiry if expiry > 0 else None  # servers written in Go send year 1 for "never"
    return None


def _is_expired(link: ResolvedUrl) -> bool:
    return link.expires_at is not None and link.expires_at - time.time() < _MARGIN_S
