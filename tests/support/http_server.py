"""Loopback HTTP server with scripted faults, for the download tests."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Fault = Callable[["Handler", bytes], bool]


@dataclass
class RecordedRequest:
    """A request as the server received it."""

    method: str
    path: str
    start: int
    headers: Mapping[str, str]
    sent: int = 0


@dataclass
class LoopbackServer:
    """A loopback server: its files, its faults, and the requests it received."""

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    always: Fault | None = None
    posts: Callable[[str, Any], Any] | None = None
    pages: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    requests: list[RecordedRequest] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def range_starts(self, path: str) -> list[int]:
        return [request.start for request in self.requests if request.path == path]

    def bytes_sent(self, path: str | None = None) -> int:
        return sum(request.sent for request in self.requests if path in (None, request.path))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    loopback: LoopbackServer

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = int(re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", "bytes=0-"))[1])
        self.record = RecordedRequest(self.command, path, start, dict(self.headers))
        self.loopback.requests.append(self.record)
        if path in self.loopback.pages:
            self.loopback.pages[path](self)
            return
        content = self.loopback.files.get(path)
        if content is None:
            self.reply(404, b"no such file")
            return
        faults = self.loopback.faults[path]
        fault = faults.popleft() if faults else self.loopback.always
        if fault is None or not fault(self, content):
            self.serve(self.loopback.files[path])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.record = RecordedRequest("POST", self.path, 0, dict(self.headers))
        self.loopback.requests.append(self.record)
        status, answer, *headers = self.loopback.posts(self.path, body)
        content_type = {"Content-Type": "application/vnd.git-lfs+json"}
        self.reply(status, json.dumps(answer).encode(), content_type | dict(*headers))

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.send(body)

    def send(self, body: bytes) -> None:
        if self.command == "HEAD":
            return
        self.wfile.write(body)
        self.record.sent += len(body)

    def serve(
        self, content: bytes, *, ranges: bool = True, cut: int | None = None, etag: str | None = None
    ) -> None:
        path = self.record.path
        etag = etag or self.loopback.etags.get(path, f'"{hashlib.md5(content).hexdigest()}"')
        start = self.record.start if ranges else 0
        unchanged = self.headers.get("If-Range") in (None, etag)
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if start and unchanged:
            if start >= len(content):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            status, body = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        else:
            status, body = 200, content
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.send(body if cut is None else body[:cut])
        if cut is not None:
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *arguments: object) -> None:
        """Ignore closed connections: they are part of these tests."""


def drop_after(count: int) -> Fault:
    """Send `count` bytes of the body, then close the connection."""
    return lambda handler, content: (handler.serve(content, cut=count), True)[1]


def stall_after(count: int) -> Fault:
    """Send `count` bytes of the body, then nothing until the test ends."""

    def fault(handler: Handler, content: bytes) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.send(content[:count])
        handler.wfile.flush()
        handler.loopback.closing.wait(600)
        handler.hang_up()
        return True

    return fault


def reply_status(code: int, headers: Mapping[str, str] = {}, body: bytes = b"trouble") -> Fault:
    """Answer with a status."""
    return lambda handler, content: (handler.reply(code, body, headers), True)[1]


def reply_body(body: bytes, content_type: str = "application/octet-stream") -> Fault:
    """Answer 200 with another body."""
    return lambda handler, content: (handler.reply(200, body, {"Content-Type": content_type}), True)[1]


def corrupt_byte(place: int = 7) -> Fault:
    """Flip a byte."""
    return lambda handler, content: (
        handler.serve(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]),
        True,
    )[1]


def ignore_ranges(handler: Handler, content: bytes) -> bool:
    """Ignore the Range header and send the complete file."""
    handler.serve(content, ranges=False)
    return True


@contextmanager
def running_server(
    files: Mapping[str, bytes] = {}, *, tls: ssl.SSLContext | None = None
) -> Iterator[LoopbackServer]:
    """Serve files by name on a free port, until the context ends."""
    loopback = LoopbackServer(files={"/" + name: content for name, content in files.items()})
    server = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"loopback": loopback}))
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    loopback.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield loopback
    finally:
        loopback.closing.set()
        server.shutdown()
        server.server_close()
