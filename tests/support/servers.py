"""Servers of Debian's packages on loopback: nginx, tinyproxy, microsocks; and giftless, a git-LFS server.

`make servers` installs the packages.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

NGINX = """
daemon off;
master_process off;
{user}
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {http}
  server {{ listen {address}{ssl}; root {root}; {server} }}
}}
"""

TINYPROXY = """
Port {port}
Listen 127.0.0.1
BasicAuth me {password}
LogFile "{folder}/tinyproxy.log"
LogLevel Connect
"""

GIFTLESS = """
from giftless.app import init_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, init_app(), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


def program(name: str) -> str:
    """Return the path of a program; skip the test if its package is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed; `make servers` installs it from Debian's packages")
    return found


class Program:
    """A server that runs until `stop`, and may be started again on the same port."""

    def __init__(self, command: list[str], port: int) -> None:
        self.command = command
        self.port = port
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            select.select([], [], [], 0.005)
        msg = f"{self.command} does not listen on port {self.port}"
        raise RuntimeError(msg)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(30)


@contextmanager
def nginx(
    folder: Path, root: Path, *, http: str = "", server: str = "", tls: bool = False
) -> Iterator[Nginx]:
    """Serve the files of a folder, with directives for nginx's `http` and `server` blocks."""
    folder.mkdir(parents=True)
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        NGINX.format(
            user="user root;" if os.geteuid() == 0 else "", folder=folder, address=f"127.0.0.1:{port}",
            http=http, ssl=" ssl" if tls else "", root=root, server=server,
        )
    )  # fmt: skip
    command = [program("nginx"), "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    running = Nginx(command, port)
    running.folder, running.url = folder, f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield running
    finally:
        running.stop()


class Nginx(Program):
    """A running nginx."""

    folder: Path
    url: str

    def statuses(self) -> list[int]:
        """Return the statuses of the answers, as the access log has them."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [int(line.split('"')[2].split()[0]) for line in lines]


@contextmanager
def tinyproxy(folder: Path, password: str) -> Iterator[str]:
    """Run an HTTP proxy with the user `me`; return its address."""
    port = free_port()
    config = folder / "tinyproxy.conf"
    config.write_text(TINYPROXY.format(port=port, password=password, folder=folder))
    proxy = Program([program("tinyproxy"), "-d", "-c", str(config)], port)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        proxy.stop()


@contextmanager
def microsocks(password: str) -> Iterator[str]:
    """Run a SOCKS5 proxy with the user `me`; return its address."""
    port = free_port()
    login = ["-u", "me", "-P", password]
    proxy = Program([program("microsocks"), "-i", "127.0.0.1", "-p", str(port), *login], port)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        proxy.stop()


@contextmanager
def giftless(folder: Path) -> Iterator[str]:
    """Run a git-LFS server with its objects in a folder; return its URL."""
    settings = {
        "TRANSFER_ADAPTERS": {"basic": {"options": {"storage_options": {"path": str(folder)}}}},
        "AUTH_PROVIDERS": ["giftless.auth.allow_anon:read_write"],
        "LEGACY_ENDPOINTS": False,
    }
    environment = {**os.environ, "GIFTLESS_CONFIG_STR": json.dumps(settings)}
    command = [sys.executable, "-P", "-c", GIFTLESS]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def free_port() -> int:
    """Return a port that no program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
