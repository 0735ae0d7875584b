"""Datasets behind each kind of server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from support.dataset_servers import HUB_SET, Site, served

import avdata
from avdata.storage import remote_files
from avdata.storage.remote import open_filesystem


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote_files, "INITIAL_DELAY_S", 0.0)
    remote_files._filesystem.cache_clear()
    yield
    remote_files._filesystem.cache_clear()


@pytest.fixture
def site(synthetic_set: Path) -> Iterator[Site]:
    with served(Site(synthetic_set)) as site:
        yield site


@pytest.fixture
def hub(synthetic_set: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The Hub on loopback, for the real client."""
    with served(Site(synthetic_set, f"/datasets/{HUB_SET}/resolve/main")) as site:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": site.url, "token": False})
        yield site


@pytest.fixture
def stored_set(bucket: str, synthetic_set: Path) -> str:
    """The URL of the dataset in a bucket."""
    files, base = open_filesystem(f"{bucket}/sets/talk")
    files.put(f"{synthetic_set}/", f"{base}/", recursive=True)
    return f"{bucket}/sets/talk"


@pytest.fixture(scope="session")
def synthetic_other(once: Callable[..., Path]) -> Path:
    """Another dataset of the same shapes, with other samples and statistics."""
    source = once("other-mock", lambda out: avdata.mock("synthetic", out, clips=24, seed=5))
    settings = {"shards": {"samples_per_shard": 8}}
    return once(
        "other",
        lambda out: avdata.prepare("synthetic", source=source, output=out, config=settings, workers=0),
    )


@pytest.fixture(scope="session")
def ave_set(ave_bad: Path, once: Callable[..., Path]) -> Path:
    """A dataset with step labels."""
    settings = {"video": {"size": 32, "num_frames": 10}}
    return once(
        "ave-steps", lambda out: avdata.prepare("ave", source=ave_bad, output=out, config=settings, workers=0)
    )


@pytest.fixture(scope="session")
def free_port() -> int:
    """A port on which the ranks of a test meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
