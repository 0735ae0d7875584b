"""Downloads that are killed or stopped: the next run goes on from the byte, and ends in the served tree."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys

import pytest

from avdata.manifest import Source

SCRIPT = """
import sys
from avdata import fetch
fetch.backoff = lambda attempt: 0.02
from avdata.download import download
from avdata.recipe import Recipe
recipe = Recipe("tiny", 1, "Tiny", ("a",), {"o": "one"}, "o", lambda *a: [], lambda *a: None)
print("ready", flush=True)
download(recipe, manifest=sys.argv[1], into=sys.argv[2], connections=8)
print("done", flush=True)
"""


class Killing:
    """300 files behind a server with faults on, and a process that downloads them."""

    def __init__(self, serve, build, faults, folder):
        rng = random.Random(1)
        self.files = build["files"](300, size=60_000, seed=3)
        self.world = serve(self.files)
        self.root = folder / "root"
        manifest = build["manifest"]([Source(name="media", urls=(self.world.url + "/{path}",))], self.files)
        self.manifest = folder / "manifest.json"
        self.manifest.write_text(manifest.model_dump_json())
        self.spoilt = set()
        for path in rng.sample(sorted(self.files), 60):
            fault = rng.choice(["drop", "busy", "corrupt"])
            if fault == "drop":
                self.world.faults["/" + path].append(faults["drop_after"](rng.randint(1, 20_000)))
            elif fault == "busy":
                self.world.faults["/" + path].append(faults["status"](503, {"Retry-After": "0"}))
            else:
                self.world.faults["/" + path].append(faults["corrupt"]())
                self.spoilt.add(path)

    def start(self):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, self.manifest, self.root], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        return process

    def here(self):
        return [path for path in self.files if (self.root / path).exists()]

    def parts(self):
        return {
            path: (self.root / f"{path}.part").stat().st_size
            for path in self.files
            if (self.root / f"{path}.part").exists()
        }

    def run_killed_at(self, done):
        """Start, and kill when `done` further files are in place."""
        target = min(len(self.here()) + done, len(self.files))
        process = self.start()
        while len(self.here()) < target and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.001)
        process.kill()
        process.wait()


def _kill_often(killing, times):
    rng = random.Random(times)
    for _ in range(times):
        here, parts = killing.here(), killing.parts()
        killing.world.asked.clear()
        killing.run_killed_at(rng.randint(0, 2 * len(killing.files) // times))
        # What is in place is not asked for again, and a part is asked for from its last byte on
        # (but for those into which the server put a wrong byte).
        asked = {path: killing.world.starts("/" + path) for path in killing.files}
        assert all(asked[path] == [] for path in here)
        went_on = {path for path in parts if asked[path]} - killing.spoilt
        assert {path: asked[path][0] for path in went_on} == {path: parts[path] for path in went_on}
        for path in killing.here():
            assert (killing.root / path).read_bytes() == killing.files[path]
    process = killing.start()
    assert process.stdout.read() == "done\n"
    process.wait()


@pytest.fixture
def killing(serve, build, faults, tmp_path):
    return Killing(serve, build, faults, tmp_path)


def test_a_download_killed_at_random_points_ends_in_the_served_tree(killing, read_tree):
    _kill_often(killing, times=5)
    assert read_tree(killing.root) == killing.files


@pytest.mark.slow
def test_a_download_killed_at_thirty_random_points_ends_in_the_served_tree(killing, read_tree):
    _kill_often(killing, times=30)
    assert read_tree(killing.root) == killing.files


def test_a_killed_download_fetches_no_byte_twice_but_those_in_flight(
    serve, build, tmp_path, read_tree, faults
):
    killing = Killing(serve, build, faults, tmp_path)
    killing.world.faults.clear()
    total = sum(map(len, killing.files.values()))
    for _ in range(4):
        killing.run_killed_at(40)
    process = killing.start()
    process.stdout.read()
    process.wait()
    assert read_tree(killing.root) == killing.files
    # Eight connections were cut four times; each may have had one file's bytes under way.
    assert killing.world.sent() - total <= 4 * 8 * 60_000


@pytest.mark.parametrize("trouble", ["slow", "stalled"])
def test_ctrl_c_stops_at_once_and_the_next_run_goes_on(killing, faults, read_tree, trouble):
    killing.world.faults.clear()
    if trouble == "stalled":
        for path in sorted(killing.files)[:20]:
            killing.world.faults["/" + path].append(faults["stall_after"](100))
    process = killing.start()
    while len(killing.world.asked) < 8 or (trouble == "slow" and not killing.here()):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)  # a stalled server would be waited for 45 s
    assert process.returncode != 0
    killing.world.faults.clear()
    here = killing.here()
    killing.world.asked.clear()
    process = killing.start()
    assert process.stdout.read() == "done\n"
    assert read_tree(killing.root) == killing.files
    assert all(killing.world.starts("/" + path) == [] for path in here)


def test_ctrl_c_in_the_callers_own_code_stops_the_threads_too(tiny, faults):
    import threading

    for path in list(tiny.files)[3:]:
        tiny.world.faults["/" + path].append(faults["stall_after"](10))

    def interrupt(path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.download(arrived=interrupt)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("avdata-")]
    assert os.path.isdir(tiny.root)
