"""Choice of the next URL of a file among its mirrors.

The manifest's order counts among mirrors that work. A mirror that is not known yet gets one request; if it
does not answer within two seconds, other files try the next mirror. This races the mirrors without requests
that serve no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from avdata.sources.hosts import Hosts
from avdata.sources.types import ResolvedUrl, TransferError


@dataclass
class Mirror:
    """One URL of a file and its attempts.

    Attributes:
        url: URL in the manifest.
        server: host of the URL.
        servers: hosts that the next attempt needs.
        attempts: failed attempts in a row.
        mismatches: attempts that returned other bytes.
        retry_at: time of the next attempt.
        first_failure: time of the first failed attempt in a row.
        served_before: requests that the host had accepted then.
        location: where the bytes are, if the URL was resolved and the link not used yet.
        is_resolved: whether the last error came from the location.
        has_new_link: whether a fresh link was requested after a refusal.
        error: last error.
        is_final: whether no further attempt is made.
    """

    url: str
    server: str
    servers: list[str] = field(default_factory=list)
    attempts: int = 0
    mismatches: int = 0
    retry_at: float = 0.0
    first_failure: float = 0.0
    served_before: int = 0
    location: ResolvedUrl | None = None
    is_resolved: bool = False
    has_new_link: bool = False
    error: TransferError | None = None
    is_final: bool = False

    def wait_for(self, server: str) -> None:
        """Require that a host is ready before the next attempt."""
        if server not in self.servers:
            self.servers.append(server)


def choose_mirror(mirrors: list[Mirror], hosts: Hosts) -> Mirror | None:
    """Return the mirror for the next attempt when one is ready; None if all have failed.

    Raises:
        Cancelled: the download was cancelled.
    """
    while True:
        for mirror in mirrors:
            if not mirror.is_final and any(hosts.is_given_up(server) for server in mirror.servers):
                mirror.is_final = True
        left = [mirror for mirror in mirrors if not mirror.is_final]
        if not left:
            return None
        left.sort(key=lambda mirror: max(map(hosts.rank, (mirror.server, *mirror.servers))))
        is_any_known = any(hosts.is_known(mirror.servers[-1]) for mirror in left)
        delays = []
        for mirror in left:
            delay = max(
                mirror.retry_at - hosts.clock.now(), *(hosts.delay(server) for server in mirror.servers)
            )
            if delay <= 0:
                return mirror
            delays.append(delay)
            if not is_any_known and any(hosts.is_starting(server) for server in mirror.servers):
                break
        hosts.wait(min(delays))
