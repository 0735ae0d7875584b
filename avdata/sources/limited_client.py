"""HTTP client that keeps the limits of each host and records how the host answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from avdata.sources.hosts import Hosts, Ticket
from avdata.sources.types import TransferError, host_of, server_of

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from avdata.sources.http import HttpClient

logger = logging.getLogger(__name__)


class LimitedClient:
    """Client of all requests of a download, shared by its threads."""

    def __init__(self, net: HttpClient, hosts: Hosts) -> None:
        self._net = net
        self._hosts = hosts

    @contextmanager
    def open(
        self, url: str, headers: Mapping[str, str], *, method: str = "GET", body: bytes | None = None
    ) -> Iterator[BaseHTTPResponse]:
        """Open a URL as `HttpClient.open` does.

        Raises:
            HostBusyError: the host accepts no request now.
            TransferError: the request failed; the host is recorded in the error.
        """
        with self._request(url) as ticket:
            timeout = self._hosts.read_timeout(ticket.server)
            with self._net.open(url, headers, method=method, body=body, read_timeout=timeout) as response:
                self._hosts.accept(ticket)
                yield response

    def head(self, url: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
        """Return a location and headers as `HttpClient.head` does.

        Raises:
            HostBusyError: the host accepts no request now.
            TransferError: the request failed; the host is recorded in the error.
        """
        with self._request(url) as ticket:
            timeout = self._hosts.read_timeout(ticket.server)
            answer = self._net.head(url, headers, read_timeout=timeout)
            self._hosts.accept(ticket)
            return answer

    @contextmanager
    def _request(self, url: str) -> Iterator[Ticket]:
        with self._hosts.request(server_of(url)) as ticket:
            try:
                yield ticket
            except TransferError as error:
                error.server = ticket.server
                if not ticket.is_answered:
                    self._record(ticket, error, url)
                raise

    def _record(self, ticket: Ticket, error: TransferError, url: str) -> None:
        if error.overloaded and error.retryable:
            if self._hosts.refuse(ticket, f"{host_of(url)} limits requests ({error})", error.wait):
                logger.warning(
                    "%s limits requests (%s). The download continues at its pace.", host_of(url), error
                )
        elif error.retryable:
            is_answer = error.status is not None
            if self._hosts.fail(ticket.server, str(error), ticket.started, is_answer=is_answer):
                logger.warning("%s is set aside and tried again later: %s.", host_of(url), error)
