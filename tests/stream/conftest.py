"""A set behind each kind of server, and what the tests ask of a stream."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from stream.servers import HUB_SET, Site, served

import avdata
from avdata import shardcache


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shardcache, "FIRST_WAIT", 0.0)
    shardcache._filesystem.cache_clear()
    yield
    shardcache._filesystem.cache_clear()


@pytest.fixture
def site(synthetic_set: Path) -> Iterator[Site]:
    with served(Site(synthetic_set)) as site:
        yield site


@pytest.fixture
def hub(synthetic_set: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The Hub on loopback; the client is the real one."""
    with served(Site(synthetic_set, f"/datasets/{HUB_SET}/resolve/main")) as site:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": site.url, "token": False})
        yield site


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the set in a bucket; credentials and endpoint come from the environment."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    # A client that another test left behind knows another server.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="talk")
    for path in synthetic_set.rglob("*"):
        if path.is_file():
            key = f"sets/talk/{path.relative_to(synthetic_set).as_posix()}"
            client.upload_fileobj(io.BytesIO(path.read_bytes()), "talk", key)
    return "s3://talk/sets/talk"


@pytest.fixture(scope="session")
def synthetic_other(once: Callable[..., Path]) -> Path:
    """Another set of the same shapes, with other samples and statistics."""
    source = once("other-mock", lambda out: avdata.mock("synthetic", out, clips=24, seed=5))
    settings = {"shards": {"samples": 8}}
    return once(
        "other", lambda out: avdata.prepare("synthetic", source=source, out=out, config=settings, workers=0)
    )
