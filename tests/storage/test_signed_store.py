"""Preparation with an S3 server that verifies signatures, and with one that answers 503 to many requests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.failing_proxy import failing_proxy
from support.object_stores import signed_store
from support.trees import digest_tree

import avdata
from avdata.errors import AvdataError
from avdata.storage import remote_files
from avdata.storage.paths import cache_dir
from avdata.storage.remote import open_filesystem

SETTINGS = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with signed_store(tmp_path_factory.mktemp("s3rver")) as environment:
        yield environment


@pytest.fixture
def signed(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of a new bucket that only signed requests can use."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    open_filesystem("s3://any")[0].mkdir(f"b{name}")
    return f"s3://b{name}"


def forget_clients() -> None:
    """Let the next client read the environment."""
    type(open_filesystem("s3://any")[0]).clear_instance_cache()
    remote_files._filesystem.cache_clear()


def stored(url: str) -> dict[str, str]:
    files, base = open_filesystem(url)
    files.invalidate_cache()
    return {
        path[len(base) :].lstrip("/"): hashlib.sha256(files.cat_file(path)).hexdigest()
        for path in files.find(base)
    }


REFUSALS = {
    "an unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know the access key"),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "secret key does not belong to the access key"),
    "no credentials": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        "No credentials were found. Set AWS_ACCESS_KEY_ID",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_prepare_names_refused_credentials_before_the_survey(
    signed: str, case: str, cremad_mock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, hint = REFUSALS[case]
    for name, value in changes.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    forget_clients()
    monkeypatch.setattr("avdata.pipeline.prepare.plan_preparation", None)
    with pytest.raises(AvdataError) as caught:
        avdata.prepare("cremad", source=cremad_mock, output=f"{signed}/set", config=SETTINGS, workers=0)
    assert hint in str(caught.value.hint)
    assert "wrong" not in str(caught.value)
    assert not list((cache_dir() / "out").glob("*/*"))
    forget_clients()


def test_prepare_names_a_missing_bucket_before_the_survey(
    signed: str, cremad_mock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avdata.pipeline.prepare.plan_preparation", None)
    with pytest.raises(AvdataError) as caught:
        avdata.prepare("cremad", source=cremad_mock, output="s3://not-there/set", config=SETTINGS, workers=0)
    assert "Create the bucket s3://not-there, or correct its name." in str(caught.value.hint)
    assert not list((cache_dir() / "out").glob("*/*"))


def test_check_writable_leaves_nothing_in_the_bucket(signed: str) -> None:
    from avdata.pipeline.output import open_output

    open_output(f"{signed}/set").check_writable()
    assert stored(f"{signed}/set") == {}


@pytest.mark.parametrize("percent", [10, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_prepare_through_failing_requests_results_in_identical_bytes(
    signed: str,
    server: dict[str, str],
    percent: int,
    cremad_mock: Path,
    cremad_set: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, base = open_filesystem(f"{signed}/raw")
    files.put(f"{cremad_mock}/", f"{base}/", recursive=True)
    with failing_proxy(server["AWS_ENDPOINT_URL"], percent) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        forget_clients()
        avdata.prepare("cremad", source=f"{signed}/raw", output=f"{signed}/set", config=SETTINGS, workers=0)
        assert avdata.verify(f"{signed}/set").ok
        assert stored(f"{signed}/set") == digest_tree(cremad_set)
        total = proxy.forwarded + proxy.failed
        assert proxy.failed == pytest.approx(total * percent / 100, rel=0.1, abs=2)
    forget_clients()
