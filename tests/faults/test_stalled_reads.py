"""Ctrl-C and SIGTERM of a command that waits for a server which stalls, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.dataset_servers import Handler, Site, served
from support.failing_proxy import failing_proxy
from support.processes import wait_until
from support.tars import write_tar

from avdata.storage.remote import open_filesystem
from avdata.subprocesses import python_command, python_environment

NO_RESUME = "Nothing to resume: run the command again"

RESUME = "Completed work is kept; run the same command again to resume"

LIMIT_S = 30.0
"""Far below the timeouts of the clients, and enough for a busy machine: one second is usual."""


def end_by_signal(
    words: list[str], is_stalled: Callable[[], bool], number: signal.Signals = signal.SIGINT
) -> tuple[int, str]:
    """Run a command, and send a signal when the server stalls; return the exit code and stderr."""
    process = subprocess.Popen(
        python_command("-m", *words), env=python_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: is_stalled() or process.poll() is not None)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, stderr.decode()


@pytest.fixture
def stalled(cremad_set: Path) -> Iterator[Site]:
    """A server of a dataset that sends nothing of any shard."""
    site, released = Site(cremad_set), threading.Event()

    def stall(handler: Handler, content: bytes) -> None:
        if site.asked[-1][0].endswith(".tar"):
            released.wait()
            handler.close_connection = True
        else:
            handler.reply(206 if handler.headers.get("Range") else 200, content)

    site.always = stall
    with served(site):
        yield site
        released.set()


@pytest.mark.parametrize(
    ("words", "number", "message"),
    [
        (["avdata", "verify", "URL"], signal.SIGINT, f"error: interrupted\nhint:  {NO_RESUME}\n"),
        (["avdata", "verify", "URL"], signal.SIGTERM, f"error: terminated\nhint:  {NO_RESUME}\n"),
        pytest.param(
            ["avdata", "verify", "URL", "--workers", "2"],
            signal.SIGINT,
            f"error: interrupted\nhint:  {NO_RESUME}\n",
            marks=pytest.mark.exhaustive,
        ),
        (
            ["avdata", "export", "URL", "author-npy", "-o", "OUT", "-q"],
            signal.SIGINT,
            f"error: interrupted\nhint:  {RESUME}\n",
        ),
    ],
    ids=["verify", "verify-sigterm", "verify-workers", "export"],
)
def test_command_that_reads_a_stalled_shard_ends_by_a_signal(
    words: list[str], number: signal.Signals, message: str, stalled: Site, tmp_path: Path
) -> None:
    places = {"URL": stalled.url, "OUT": str(tmp_path / "out")}
    words = [places.get(word, word) for word in words]
    assert end_by_signal(words, lambda: bool(stalled.asked_for(".tar")), number) == (128 + number, message)


@pytest.mark.parametrize(
    "ending", ["b.json", "a.tar", "c.wav"], ids=["list that is copied", "header of a tar", "file to hash"]
)
def test_prepare_from_a_stalled_store_ends_by_a_signal(
    ending: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, base = open_filesystem(f"{bucket}/raw")
    tar = write_tar(tmp_path / "a.tar", {"a": {"wav": bytes(9000), "cls": b"0"}})
    files.put_file(str(tar), f"{base}/a.tar")
    files.pipe_file(f"{base}/b.json", b"{}")
    files.pipe_file(f"{base}/c.wav", bytes(1 << 20))
    source = tmp_path / "raw.py"
    source.write_text(RECIPE, encoding="utf-8")
    recipe = "webdataset" if ending == "a.tar" else str(source)
    with failing_proxy(os.environ["AWS_ENDPOINT_URL"], stalled=ending) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        words = ["avdata", "prepare", recipe, "--source", f"{bucket}/raw", "--no-checksums", "-q"]
        code, message = end_by_signal([*words, "-o", str(tmp_path / "out")], proxy.stalls.is_set)
    assert (code, message) == (130, f"error: interrupted\nhint:  {RESUME}\n")


RECIPE = """
from avdata import Clip, Recipe

RECIPE = Recipe(
    name="stalled", version=1, title="Stalled", labels=("a",), splits={"all": "all are train"},
    default_split="all",
    clips=lambda root, split_by: [
        Clip(key="c", label="a", group="c", split="train", video=None, audio=root / "c.wav")
    ],
)
"""
