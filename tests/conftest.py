"""Mocks and prepared sets that several tests read; each is made once a process and never written to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from stores import store

import avdata
from avdata.filesystem import filesystem_of

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as processors run already: threads of theirs would only wait for one another, busily.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a script; the processes that tests stop with Ctrl-C would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is slow the first time, as a kernel that is compiled then, is no failure: no test is timed.
hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def stores() -> Iterator[Callable[[str], dict[str, str]]]:
    with ExitStack() as started:
        yield cache(lambda scheme: started.enter_context(store(scheme)))


@pytest.fixture
def bucket(
    request: pytest.FixtureRequest,
    stores: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    """The URL of a new bucket: of S3, or of the scheme that the test is parametrized with."""
    scheme = getattr(request, "param", "s3")
    for name, value in stores(scheme).items():
        monkeypatch.setenv(name, value)
    url = f"{scheme}://b{abs(hash(tmp_path))}"
    # A client that another test left behind knows another server.
    type(filesystem_of(url)[0]).clear_instance_cache()
    files, name = filesystem_of(url)
    files.mkdir(name)
    return url


@pytest.fixture(scope="session")
def cremad_mock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return avdata.mock("cremad", tmp_path_factory.mktemp("mock") / "cremad", clips=14)


@pytest.fixture(scope="session")
def cremad_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return avdata.mock("cremad", tmp_path_factory.mktemp("mock") / "cremad-bad", clips=7, bad=True)


@pytest.fixture(scope="session")
def ave_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return avdata.mock("ave", tmp_path_factory.mktemp("mock") / "ave-bad", clips=4, bad=True)


@pytest.fixture(scope="session")
def urbansound_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return avdata.mock("urbansound8k-av", tmp_path_factory.mktemp("mock") / "us8k-bad", clips=20, bad=True)


@pytest.fixture(scope="session")
def synthetic_mock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return avdata.mock("synthetic", tmp_path_factory.mktemp("mock") / "synthetic", clips=44)


@pytest.fixture(scope="session")
def cremad_set(tmp_path_factory: pytest.TempPathFactory, cremad_mock: Path) -> Path:
    out = tmp_path_factory.mktemp("sets") / "cremad"
    settings = {"video": {"size": 48}, "shards": {"samples": 4}}
    avdata.prepare("cremad", source=cremad_mock, out=out, config=settings, workers=0)
    return out


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory: pytest.TempPathFactory, synthetic_mock: Path) -> Path:
    out = tmp_path_factory.mktemp("sets") / "synthetic"
    avdata.prepare("synthetic", source=synthetic_mock, out=out, config={"shards": {"samples": 8}}, workers=0)
    return out
