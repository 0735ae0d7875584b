"""Mocks and prepared sets that several tests read; each is made once a run and never written to."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock
from support import environment as surroundings
from support.command_server import CommandServer
from support.ffmpeg_media import write_media
from support.object_stores import store

import avdata
from avdata.storage.remote import open_filesystem

# Scripts, and modules without examples, some of which import a framework.
collect_ignore = ["support", "reporting/in_browser.py"]

surroundings.forget()
surroundings.put_ffmpeg_on_path()

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as processors run already: threads of theirs would only wait for one another, busily.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a script; the processes that tests stop with Ctrl-C would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is slow the first time, as a kernel that is compiled then, is no failure: no test is timed, nor is the
# making of its examples. Every run has the same examples, so that whoever changes one thing is not stopped by
# a find in another; new ones are looked for at leisure, with `pytest --hypothesis-profile=explore`.
UNTIMED = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.register_profile("explore", UNTIMED)
hypothesis.settings.register_profile("same", UNTIMED, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that nobody waits for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["AVDATA_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(autouse=True)
def _no_debugging() -> Iterator[None]:
    yield
    # What `--debug` sets in this process must not outlive its test.
    os.environ.pop("AVDATA_DEBUG", None)


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def stores() -> Iterator[Callable[[str], dict[str, str]]]:
    with ExitStack() as started:
        yield cache(lambda scheme: started.enter_context(store(scheme)))


@pytest.fixture
def bucket(
    request: pytest.FixtureRequest,
    stores: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The URL of a new bucket: of S3, or of the scheme that the test is parametrized with."""
    scheme = getattr(request, "param", "s3")
    for name, value in stores(scheme).items():
        monkeypatch.setenv(name, value)
    url = f"{scheme}://b{uuid.uuid4().hex}"
    # A client that another test left behind knows another server.
    type(open_filesystem(url)[0]).clear_instance_cache()
    files, name = open_filesystem(url)
    files.mkdir(name)
    return url


@pytest.fixture(scope="session")
def command_server() -> Iterator[CommandServer]:
    with CommandServer() as server:
        yield server


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder once for all processes of a run: the first that wants it makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    held = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = held / name / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        done = held / f"{name}.done"
        # The kernel releases the lock when its holder dies; the incomplete folder is then made again.
        with FileLock(held / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def ffmpeg_media(once: Once) -> Path:
    """Files that the ffmpeg program wrote, by the names of `support.ffmpeg_media`."""
    return once("ffmpeg-media", write_media)


@pytest.fixture(scope="session")
def cremad_mock(once: Once) -> Path:
    return once("cremad-mock", lambda out: avdata.mock("cremad", out, clips=14))


@pytest.fixture(scope="session")
def ave_mock(once: Once) -> Path:
    return once("ave-mock", lambda out: avdata.mock("ave", out, clips=4))


@pytest.fixture(scope="session")
def bad_mock(once: Once) -> Callable[[str], Path]:
    """Mock of a recipe that includes its bad cases."""
    clips = {"ave": 4, "cremad": 7, "urbansound8k": 20, "urbansound8k-av": 20, "vggsound": 3}
    return lambda name: once(
        f"{name}-bad", lambda out: avdata.mock(name, out, clips=clips.get(name, 8), bad=True)
    )


@pytest.fixture(scope="session")
def cremad_bad(bad_mock: Callable[[str], Path]) -> Path:
    return bad_mock("cremad")


@pytest.fixture(scope="session")
def ave_bad(bad_mock: Callable[[str], Path]) -> Path:
    return bad_mock("ave")


@pytest.fixture(scope="session")
def urbansound_bad(bad_mock: Callable[[str], Path]) -> Path:
    return bad_mock("urbansound8k-av")


@pytest.fixture(scope="session")
def synthetic_mock(once: Once) -> Path:
    return once("synthetic-mock", lambda out: avdata.mock("synthetic", out, clips=44))


@pytest.fixture(scope="session")
def cremad_set(once: Once, cremad_mock: Path) -> Path:
    settings = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}
    return once(
        "cremad",
        lambda out: avdata.prepare("cremad", source=cremad_mock, output=out, config=settings, workers=0),
    )


@pytest.fixture(scope="session")
def audio_set(once: Once) -> Path:
    """Dataset of audio: its samples have no frames."""
    settings = {"audio": {"flac": True}, "shards": {"samples_per_shard": 8}}

    def make(out: Path) -> None:
        raw = avdata.mock("urbansound8k", out.with_name("raw"), clips=30)
        avdata.prepare("urbansound8k", source=raw, output=out, config=settings, workers=0)

    return once("urbansound8k", make)


@pytest.fixture(scope="session")
def synthetic_set(once: Once, synthetic_mock: Path) -> Path:
    settings = {"shards": {"samples_per_shard": 8}}
    return once(
        "synthetic",
        lambda out: avdata.prepare(
            "synthetic", source=synthetic_mock, output=out, config=settings, workers=0
        ),
    )


@pytest.fixture(scope="session")
def parts(once: Once, synthetic_mock: Path) -> Path:
    """Folder of the three parts of `synthetic_set`."""

    def make(out: Path) -> None:
        for number in (1, 2, 3):
            settings = {"shards": {"samples_per_shard": 8}, "select": {"part": f"{number}/3"}}
            avdata.prepare(
                "synthetic", source=synthetic_mock, output=out / f"part-{number}", config=settings, workers=0
            )

    return once("parts", make)
