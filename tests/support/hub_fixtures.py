"""A Hub on loopback for the real client, and datasets to publish."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from support.hub_server import TOKEN, HubServer

from avdata.storage import remote_files


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record sleeps, in seconds, instead of sleeping; threads of other tests still sleep."""
    delays: list[float] = []
    others = {thread for thread in threading.enumerate() if thread is not threading.current_thread()}
    sleep = time.sleep

    def slept(seconds: float) -> None:
        if threading.current_thread() in others:
            sleep(seconds)
        else:
            delays.append(seconds)

    monkeypatch.setattr("time.sleep", slept)
    return delays


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]) -> Iterator[HubServer]:
    with HubServer() as server:
        _point_client_to(server.url, monkeypatch, tmp_path)
        yield server
        _forget_servers()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]) -> Iterator[str]:
    """The address of an unreachable Hub: a closed port."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        _point_client_to(url, monkeypatch, tmp_path)
        yield url
        _forget_servers()


def _point_client_to(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The client caches files by commit, and the commit IDs of tests may coincide.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _forget_servers()


def _forget_servers() -> None:
    huggingface_hub.HfFileSystem.clear_instance_cache()
    remote_files._filesystem.cache_clear()


@pytest.fixture
def own_set(cremad_set: Path, tmp_path: Path) -> Path:
    """A dataset that states real media, since `publish` refuses generated ones."""
    root = Path(shutil.copytree(cremad_set, tmp_path / "set"))
    info = json.loads((root / "dataset.json").read_bytes())
    info["source"]["checksums"] = "manifest"
    (root / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    return root
