"""A proxy on loopback that answers a share of the requests to an S3 server with 503, as busy stores do.

It can also leave the reads of some files without an answer.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from support.http_server import Quiet

SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>'

HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass
class FailingProxy:
    """The proxy: its address, the numbers of forwarded and failed requests, and whether one stalls."""

    url: str = ""
    forwarded: int = 0
    failed: int = 0
    stalls: threading.Event = field(default_factory=threading.Event)


@contextmanager
def failing_proxy(server: str, percent: int = 0, stalled: str | None = None) -> Iterator[FailingProxy]:
    """Forward requests to a server, except `percent` of a hundred of them, spread evenly.

    Args:
        server: URL of the server.
        percent: share of the requests that fail.
        stalled: ending of the paths that nothing is sent of; None stalls no request.
    """
    proxy, lock, released = FailingProxy(), threading.Lock(), threading.Event()
    target = urlsplit(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

        def forward(self) -> None:
            if self.command == "GET" and stalled is not None and urlsplit(self.path).path.endswith(stalled):
                proxy.stalls.set()
                released.wait()
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                number = proxy.forwarded + proxy.failed
                is_failed = number * 37 % 100 < percent
                proxy.failed, proxy.forwarded = proxy.failed + is_failed, proxy.forwarded + (not is_failed)
            if is_failed:
                self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port)
            # The signature covers the Host header: it stays that of the proxy.
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            self.answer(response.status, kept, content)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            lengths = {} if self.command == "HEAD" else {"Content-Length": str(len(content))}
            for name, value in {**headers, **lengths}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)

    listener = Quiet(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield proxy
    finally:
        released.set()
        listener.shutdown()
        listener.server_close()
