"""Downloads that are killed or stopped: the next run resumes at the byte and completes."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import threading

import pytest
from support.http_server import corrupt_byte, drop_after, reply_status, stall_after
from support.tiny_dataset import make_files, make_manifest, read_tree

from avdata.manifest import Source

WORK = """
import os, sys
from avdata.sources import fetcher as fetch
from avdata.sources import http as connection
fetch.backoff = lambda attempt: 0.02
connection.READ_TIMEOUT_S = 600
from avdata.sources.download import download
from avdata.recipe import Recipe
recipe = Recipe("tiny", 1, "Tiny", ("a",), {"o": "one"}, "o", lambda *a: [], lambda *a: None)
def say(text):
    # One write for a line: print needs two with PYTHONUNBUFFERED=1, and a kill can come between them.
    os.write(1, (text + chr(10)).encode())
def work():
    say(f"ready {os.getpid()}")
    download(recipe, manifest=sys.argv[1], output=sys.argv[2], connections=8)
    say("done")
"""
# Forks for each line of stdin, so that the killed process need not repeat the imports.
RUNS = """
for _ in sys.stdin:
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    os.waitpid(child, 0)
    say("ended")
"""


class KilledDownload:
    """300 files on a faulty server, and a process that downloads them."""

    def __init__(self, serve, folder):
        rng = random.Random(1)
        self.files = make_files(300, size=60_000, seed=3)
        self.server = serve(self.files)
        self.root = folder / "root"
        manifest = make_manifest([Source(name="media", urls=(self.server.url + "/{path}",))], self.files)
        self.manifest = folder / "manifest.json"
        self.manifest.write_text(manifest.model_dump_json())
        self.corrupted = set()
        self.started, self.runs = [], None
        for path in rng.sample(sorted(self.files), 60):
            fault = rng.choice(["drop", "busy", "corrupt"])
            if fault == "drop":
                self.server.faults["/" + path].append(drop_after(rng.randint(1, 20_000)))
            elif fault == "busy":
                self.server.faults["/" + path].append(reply_status(503, {"Retry-After": "0"}))
            else:
                self.server.faults["/" + path].append(corrupt_byte())
                self.corrupted.add(path)

    def start(self, code=WORK + "work()"):
        # Unbuffered, so that select sees everything that can be read.
        process = subprocess.Popen(
            [sys.executable, "-c", code, self.manifest, self.root],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self.started.append(process)
        return process

    def close(self):
        for process in self.started:
            process.kill()
            process.communicate()

    def here(self):
        folders = [self.root / name for name in ("flv", "wav")]
        found = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return {path.relative_to(self.root).as_posix() for path in found} & self.files.keys()

    def parts(self):
        return {
            path: (self.root / f"{path}.part").stat().st_size
            for path in self.files
            if (self.root / f"{path}.part").exists()
        }

    def run_killed_at(self, done):
        """Start, and kill when `done` further files are in place."""
        if self.runs is None:
            self.runs = self.start(WORK + RUNS)
        target = min(len(self.here()) + done, len(self.files))
        self.runs.stdin.write(b"\n")
        ready, pid = self.runs.stdout.readline().split()
        assert ready == b"ready"
        while len(self.here()) < target and not select.select([self.runs.stdout], [], [], 0.002)[0]:
            pass
        # It may have ended already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
        while (line := self.runs.stdout.readline()) != b"ended\n":
            assert line == b"done\n"

    def run_to_the_end(self):
        process = self.start()
        assert process.stdout.read().endswith(b"\ndone\n")
        assert process.wait() == 0


@pytest.fixture
def killing(serve, tmp_path):
    killing = KilledDownload(serve, tmp_path)
    yield killing
    killing.close()


@pytest.mark.parametrize("kills", [10, pytest.param(30, marks=pytest.mark.exhaustive)])
def test_download_resumes_after_random_kills(killing, kills):
    rng = random.Random(kills)
    for _ in range(kills):
        here, parts = killing.here(), killing.parts()
        killing.server.requests.clear()
        killing.run_killed_at(rng.randint(0, 2 * len(killing.files) // kills))
        # Complete files are not requested again, and partial files are requested from their last byte
        # (except those into which the server put a wrong byte).
        asked = {path: killing.server.range_starts("/" + path) for path in killing.files}
        assert all(asked[path] == [] for path in here)
        resumed = {path for path in parts if asked[path]} - killing.corrupted
        assert {path: asked[path][0] for path in resumed} == {path: parts[path] for path in resumed}
        for path in killing.here() - here:
            assert (killing.root / path).read_bytes() == killing.files[path]
    killing.run_to_the_end()
    assert read_tree(killing.root) == killing.files


def test_download_fetches_only_bytes_in_flight_again_after_a_kill(killing):
    killing.server.faults.clear()
    total = sum(map(len, killing.files.values()))
    for _ in range(4):
        killing.run_killed_at(40)
    killing.run_to_the_end()
    assert read_tree(killing.root) == killing.files
    # Eight connections were cut four times, each with at most the bytes of one file in flight.
    assert killing.server.bytes_sent() - total <= 4 * 8 * 60_000


def trickle(handler, content):
    """Send a byte now and then, as long as somebody listens."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for place in range(len(content)):
        handler.send(content[place : place + 1])
        if handler.server.closing.wait(0.02):
            break
    handler.hang_up()
    return True


@pytest.mark.parametrize("trouble", ["slow", "stalled"])
def test_download_stops_on_ctrl_c_and_resumes(killing, trouble):
    killing.server.faults.clear()
    # Some files arrive, and then no more: however late the signal comes, the run is not over.
    for path in sorted(killing.files)[20:]:
        killing.server.faults["/" + path].append(trickle if trouble == "slow" else stall_after(100))
    process = killing.start()
    process.stdout.readline()
    while len(killing.server.requests) < 24 or not killing.here():
        assert process.poll() is None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=300)  # the read timeout for a stalled server is ten minutes
    assert process.returncode != 0
    killing.server.faults.clear()
    here = killing.here()
    killing.server.requests.clear()
    killing.run_to_the_end()
    assert read_tree(killing.root) == killing.files
    assert all(killing.server.range_starts("/" + path) == [] for path in here)


def test_download_stops_its_threads_on_ctrl_c_in_a_callback(tiny, monkeypatch):
    monkeypatch.setattr("avdata.sources.http.READ_TIMEOUT_S", 600)
    for path in list(tiny.files)[3:]:
        tiny.server.faults["/" + path].append(stall_after(10))

    def interrupt(path):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        tiny.download(arrived=interrupt)
    left = [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("avdata-fetch") and thread not in before
    ]
    for thread in left:
        thread.join(300)  # the read timeout for a stalled server is ten minutes
    assert not any(thread.is_alive() for thread in left)
