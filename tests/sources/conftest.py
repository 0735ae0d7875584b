"""Loopback servers with scripted faults, and datasets that are served by them."""

from __future__ import annotations

import hashlib
import json
import random
import re
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from avdata.manifest import FileEntry, License, Manifest, Source
from avdata.recipe import Clip, Recipe

Fault = Callable[["Handler", bytes], bool]


@dataclass
class Asked:
    """One request as the server saw it."""

    method: str
    path: str
    start: int
    headers: Mapping[str, str]
    sent: int = 0


@dataclass
class World:
    """What a server serves, what it does wrong, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    always: Fault | None = None
    posts: Callable[[str, Any], Any] | None = None
    pages: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    drops_connections: bool = False

    def starts(self, path: str) -> list[int]:
        return [one.start for one in self.asked if one.path == path]

    def sent(self, path: str | None = None) -> int:
        return sum(one.sent for one in self.asked if path in (None, one.path))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    world: World

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = int(re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", "bytes=0-"))[1])
        self.record = Asked(self.command, path, start, dict(self.headers))
        self.world.asked.append(self.record)
        if path in self.world.pages:
            self.world.pages[path](self)
            return
        content = self.world.files.get(path)
        if content is None:
            self.reply(404, b"no such file")
            return
        faults = self.world.faults[path]
        fault = faults.popleft() if faults else self.world.always
        if fault is None or not fault(self, content):
            self.serve(self.world.files[path])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.record = Asked("POST", self.path, 0, dict(self.headers))
        self.world.asked.append(self.record)
        status, answer = self.world.posts(self.path, body)
        self.reply(status, json.dumps(answer).encode(), {"Content-Type": "application/vnd.git-lfs+json"})

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
        etag = etag or self.world.etags.get(path, f'"{hashlib.md5(content).hexdigest()}"')
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
        """Clients that hang up are part of these tests."""


def drop_after(count: int) -> Fault:
    """Send so many bytes of the body, then cut the connection."""
    return lambda handler, content: (handler.serve(content, cut=count), True)[1]


def stall_after(count: int) -> Fault:
    """Send so many bytes of the body, then nothing more until the test is over."""

    def fault(handler: Handler, content: bytes) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.send(content[:count])
        handler.wfile.flush()
        handler.world.closing.wait(600)
        handler.hang_up()
        return True

    return fault


def status(code: int, headers: Mapping[str, str] = {}, body: bytes = b"trouble") -> Fault:
    """Answer with this status."""
    return lambda handler, content: (handler.reply(code, body, headers), True)[1]


def instead(body: bytes, content_type: str = "application/octet-stream") -> Fault:
    """Send another body, as if all were well."""
    return lambda handler, content: (handler.reply(200, body, {"Content-Type": content_type}), True)[1]


def corrupt(place: int = 7) -> Fault:
    """Flip a byte."""
    return lambda handler, content: (
        handler.serve(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]),
        True,
    )[1]


def no_ranges(handler: Handler, content: bytes) -> bool:
    """Send the whole file whatever was asked for."""
    handler.serve(content, ranges=False)
    return True


@pytest.fixture
def faults() -> dict[str, Any]:
    """The faults by name: conftest cannot be imported from."""
    return {
        "drop_after": drop_after,
        "stall_after": stall_after,
        "status": status,
        "instead": instead,
        "corrupt": corrupt,
        "no_ranges": no_ranges,
    }


@pytest.fixture
def serve() -> Iterator[Callable[..., World]]:
    """Start servers: `serve(files)` gives a World with its `url`."""
    running: list[tuple[ThreadingHTTPServer, World]] = []

    def start(files: Mapping[str, bytes] = {}, *, tls: ssl.SSLContext | None = None) -> World:
        world = World(files={"/" + name: content for name, content in files.items()})
        server = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"world": world}))
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        world.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append((server, world))
        return world

    yield start
    for server, world in running:
        world.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and waits that are short."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AVDATA_CACHE", str(folder))
    monkeypatch.setattr("avdata.sources.fetcher.backoff", lambda attempt: 0.01)
    return folder


def make_files(count: int, size: int = 3000, seed: int = 0) -> dict[str, bytes]:
    """Files of random bytes, two a clip."""
    rng = random.Random(seed)
    names = [f"wav/c{clip:04d}.wav" for clip in range(count // 2)] + [
        f"flv/c{clip:04d}.flv" for clip in range(count - count // 2)
    ]
    return {name: rng.randbytes(rng.randint(size // 2, size)) for name in names}


def facts_of(files: Mapping[str, bytes]) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(path=path, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}", bytes=len(content))
        for path, content in sorted(files.items())
    )


def make_manifest(
    sources: Sequence[Source], files: Mapping[str, bytes] = {}, tables: Mapping[str, Mapping[str, bytes]] = {}
) -> Manifest:
    return Manifest(
        name="tiny",
        title="A tiny dataset",
        homepage="https://example.org",
        license=License(id="odbl", name="ODbL", publish="yes", note="share alike"),
        citation="Nobody, 2026",
        sources=tuple(sources),
        files=facts_of(files),
        tables={name: facts_of(listed) for name, listed in tables.items()},
    )


def listed(root: Path, paths: Sequence[str], split_by: str) -> list[Clip]:
    stems = sorted({PurePosixPath(path).stem for path in paths if path[:3] in ("wav", "flv")})
    return [
        Clip(
            key=stem,
            label=f"l{int(stem[1:]) % 2}",
            group=stem,
            split="test" if int(stem[1:]) % 5 == 0 else "train",
            video=Path("flv", stem + ".flv"),
            audio=Path("wav", stem + ".wav"),
        )
        for stem in stems
    ]


def make_recipe(**changes: Any) -> Recipe:
    settings = {
        "name": "tiny",
        "version": 1,
        "title": "Tiny",
        "labels": ("l0", "l1"),
        "splits": {"official": "the only one"},
        "default_split": "official",
        "clips": lambda root, split_by: [],
        "mock": lambda out, clips, bad, seed: None,
        "clips_from_paths": listed,
    }
    return Recipe(**{**settings, **changes})


@pytest.fixture
def build() -> dict[str, Any]:
    """Makers of files, manifests and recipes: conftest cannot be imported from."""
    return {"files": make_files, "facts": facts_of, "manifest": make_manifest, "recipe": make_recipe}


def tree(root: Path) -> dict[str, bytes]:
    """All files below a folder but the state's."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".avdata" not in path.parts
    }


@pytest.fixture
def read_tree() -> Callable[[Path], dict[str, bytes]]:
    return tree


@dataclass
class Tiny:
    """A dataset of single files, one server, and the folder it is downloaded into."""

    world: World
    files: dict[str, bytes]
    manifest: Manifest
    recipe: Recipe
    root: Path

    def download(self, **options: Any) -> Any:
        from avdata.sources.download import download

        return download(self.recipe, manifest=self.manifest, output=self.root, **options)

    def tree(self) -> dict[str, bytes]:
        return tree(self.root)

    def log(self) -> list[dict[str, Any]]:
        path = self.root / ".avdata" / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def tiny(serve: Callable[..., World], tmp_path: Path) -> Tiny:
    """Twelve small files on one server that does nothing wrong yet."""
    files = make_files(12)
    world = serve(files)
    source = Source(name="media", urls=(world.url + "/{path}",))
    return Tiny(world, files, make_manifest([source], files), make_recipe(), tmp_path / "root")
