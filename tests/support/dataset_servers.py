"""Loopback HTTP server of a prepared dataset, with scripted faults and the Hub's API."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Fault = Callable[["Handler", bytes], None]
HUB_SET = "someone/talk"
HUB_COMMIT = "c" * 40


class Site:
    """Content of a server, faults by path, and a record of its requests."""

    def __init__(self, root: Path, prefix: str = "") -> None:
        self.root, self.prefix, self.url = root, prefix, ""
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.always: Fault | None = None
        self.asked: list[tuple[str, int, int]] = []  # path below the root, first byte, end

    def asked_for(self, ending: str) -> list[tuple[str, int, int]]:
        return [request for request in self.asked if request[0].endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    site: Site

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/datasets/"):
            self.hub_api(path.removeprefix(f"/api/datasets/{HUB_SET}"))
            return
        path = path.replace(f"/resolve/{HUB_COMMIT}", "/resolve/main")
        name = path.removeprefix(self.site.prefix).lstrip("/")
        file = self.site.root / name
        if not path.startswith(self.site.prefix) or not file.is_file():
            self.reply(404, b"no such file")
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1, len(content)) if asked and asked[2] else len(content)
        headers = {"Accept-Ranges": "bytes", "ETag": '"1"', "X-Repo-Commit": HUB_COMMIT}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        if self.command == "GET":
            self.site.asked.append((name, first, end))
            faults = self.site.faults[name]
            fault = faults.popleft() if faults else self.site.always
            if fault is not None:
                fault(self, content[first:end])
                return
        self.reply(206 if asked else 200, content[first:end], headers)

    do_HEAD = do_GET

    def hub_api(self, asked: str) -> None:
        """Reply as the Hub does about a dataset and its folders."""
        asked = asked.replace(HUB_COMMIT, "main")
        if asked.startswith("/tree/main"):
            below = asked.removeprefix("/tree/main").strip("/")
            rows = [
                {
                    "type": "directory" if path.is_dir() else "file", "oid": "0" * 40,
                    "size": 0 if path.is_dir() else path.stat().st_size,
                    "path": path.relative_to(self.site.root).as_posix(),
                }
                for path in sorted((self.site.root / below).iterdir())
            ]  # fmt: skip
            self.reply(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        elif asked in {"", "/revision/main"}:
            facts = {"id": HUB_SET, "sha": HUB_COMMIT, "private": False, "tags": [], "siblings": []}
            self.reply(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def served(site: Site) -> Iterator[Site]:
    """Serve the site on a free port within the context."""
    handler = type("Handler", (Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unavailable(handler: Handler, content: bytes) -> None:
    handler.reply(503, b"come back later")


def dropped(handler: Handler, content: bytes) -> None:
    """Send half of the content, then close the connection."""
    handler.send_response(206 if handler.headers.get("Range") else 200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(2)


def trickled(handler: Handler, content: bytes) -> None:
    """Send all of the content, in small pieces with pauses."""
    handler.send_response(206 if handler.headers.get("Range") else 200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    step = max(len(content) // 8, 1)
    for start in range(0, len(content), step):
        handler.wfile.write(content[start : start + step])
        handler.wfile.flush()
        time.sleep(0.002)  # the fault itself: a slow server


def flipped(handler: Handler, content: bytes) -> None:
    """Send the content with one wrong byte."""
    wrong = bytearray(content)
    wrong[len(wrong) // 2] ^= 1
    handler.reply(206 if handler.headers.get("Range") else 200, bytes(wrong))
