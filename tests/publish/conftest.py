"""A Hub on loopback that the real client talks to, and sets to publish."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from publish.hub_server import TOKEN, HubServer

from avdata import shardcache


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        # The client takes a commit's files from its cache, and each test's commits are numbered from one.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub-home"))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        _forget_servers()
        yield server
        _forget_servers()


def _forget_servers() -> None:
    huggingface_hub.HfFileSystem.clear_instance_cache()
    shardcache._filesystem.cache_clear()


@pytest.fixture
def own_set(cremad_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cremad_set, tmp_path / "set"))
