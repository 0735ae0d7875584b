"""Fixtures of the download tests: loopback servers and a small dataset that one of them serves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.http_server import LoopbackServer, running_server
from support.tiny_dataset import SINGLE_FILE, make_files, make_manifest, make_recipe, read_tree

from avdata.manifest import Manifest, Source
from avdata.recipe import Recipe


@pytest.fixture
def serve() -> Iterator[Callable[..., LoopbackServer]]:
    """Start servers: `serve(files)` returns one with its `url`; all stop after the test."""
    with ExitStack() as running:
        yield lambda *arguments, **options: running.enter_context(running_server(*arguments, **options))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and waits that are short."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AVDATA_CACHE", str(folder))
    monkeypatch.setattr("avdata.sources.fetcher.backoff", lambda attempt: 0.01)
    return folder


class SimulatedClock:
    """Clock that advances by each wait, with a pause of a millisecond for other threads."""

    time = 1000.0

    def now(self) -> float:
        return self.time

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        changed.wait(0.001)
        self.time += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    """Let downloads wait in simulated time."""
    simulated = SimulatedClock()
    monkeypatch.setattr("avdata.sources.fetcher.Clock", lambda: simulated)
    return simulated


@dataclass
class Tiny:
    """A dataset of single files, one server, and the folder it is downloaded into."""

    server: LoopbackServer
    files: dict[str, bytes]
    manifest: Manifest
    recipe: Recipe
    root: Path

    def download(self, **options: Any) -> Any:
        from avdata.sources.download import download

        return download(self.recipe, manifest=self.manifest, output=self.root, **options)

    def tree(self) -> dict[str, bytes]:
        return read_tree(self.root)

    def log(self) -> list[dict[str, Any]]:
        path = self.root / ".avdata" / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def tiny(serve: Callable[..., LoopbackServer], tmp_path: Path) -> Tiny:
    """Twelve small files on one server without faults."""
    files = make_files(12)
    server = serve(files)
    source = Source(name="media", urls=(server.url + "/{path}",))
    return Tiny(server, files, make_manifest([source], files), make_recipe(), tmp_path / "root")


@pytest.fixture
def single_file(tiny: Tiny) -> Tiny:
    """A dataset of one file of 200 kB."""
    content = bytes(range(256)) * 800
    tiny.files = {SINGLE_FILE: content}
    tiny.server.files = {"/" + SINGLE_FILE: content}
    source = Source(name="media", urls=(tiny.server.url + "/{path}",))
    tiny.manifest = make_manifest([source], tiny.files)
    return tiny
