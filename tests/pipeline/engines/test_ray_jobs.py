"""A preparation that `ray job submit` starts on a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY = [sys.executable, "-m", "ray.scripts.scripts"]

MARKED = """
import os

def job(job, report):
    report("item")
    report("")
    return os.environ["MARK"]
"""

DRIVER = """
from marked import job
from avdata.pipeline.engines.ray import run_jobs

marks = run_jobs(job, [1, 2], workers=2, item_timeout=60.0, exclude=lambda job, *_: job)
print("marks:", *marks)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the dashboard of a cluster of two CPUs."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = tempfile.mkdtemp(prefix="ray")  # a socket path is limited to about 100 characters
    gcs, dashboard, client, agent = free_ports(4)
    command = [
        *RAY, "start", "--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=2",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        "--object-store-memory=80000000", f"--temp-dir={folder}", "--block",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and socket.socket().connect_ex(("127.0.0.1", dashboard)):
        if time.monotonic() > deadline:  # as without `ray[default]`
            process.terminate()
            pytest.fail("the dashboard did not start")
        threading.Event().wait(0.5)
    yield f"http://127.0.0.1:{dashboard}"
    process.terminate()  # ends the processes of the node
    process.wait(60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.exhaustive  # starts a dashboard, which needs `ray[default]`
def test_submitted_job_passes_its_runtime_env_to_the_workers(head: str, tmp_path: Path) -> None:
    """The workers import the job's module only through the PYTHONPATH of the runtime environment."""
    (tmp_path / "marked.py").write_text(MARKED)
    (tmp_path / "driver.py").write_text(DRIVER)
    variables = {"env_vars": {"MARK": "reached", "PYTHONPATH": str(tmp_path)}}
    done = subprocess.run(
        [*RAY, "job", "submit", f"--address={head}", f"--runtime-env-json={json.dumps(variables)}", "--",
         sys.executable, str(tmp_path / "driver.py")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert "marks: reached reached" in done.stdout, done.stdout + done.stderr
