"""Object stores on loopback, each a server in a process of its own; clients find them as users' do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

S3RVER = Path(__file__).parents[2] / "build" / "s3rver"
"""Where `make servers` installs the S3 server that verifies signatures, with npm."""

_S3RVER = """
const S3rver = require('@20minutes/s3rver');
const server = new S3rver({address: '127.0.0.1', port: 0, directory: process.argv[1], silent: true});
server.run().then(address => console.log('http://127.0.0.1:' + address.port));
process.stdin.resume();
process.stdin.on('end', () => process.exit());
"""

# Each prints where it listens and serves until its standard input ends, as it does when the tests die.
_SERVERS = {
    "s3": """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
""",
    # It answers one request at a time: the others have to wait and not be turned away.
    "gs": """
import socketserver, sys
from gcp_storage_emulator.server import create_server
socketserver.TCPServer.request_queue_size = 128
server = create_server("127.0.0.1", 0, in_memory=True)
server._api.daemon = True
server.start()
print("http://%s:%s" % server._api._httpd.server_address, flush=True)
sys.stdin.read()
""",
}


@contextmanager
def store(scheme: str) -> Iterator[dict[str, str]]:
    """The environment in which clients find a new store, as long as the context lasts."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVERS[scheme]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url, f"the {scheme} server did not start"
        yield {
            "s3": {
                "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            },
            # No credentials of the user's, who has a store that is not this one, and none of the machine's.
            "gs": {
                "STORAGE_EMULATOR_HOST": url, "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": "/nowhere",
                "GOOGLE_APPLICATION_CREDENTIALS": "",
            },
        }[scheme]  # fmt: skip
    finally:
        server.kill()
        server.wait()


@contextmanager
def signed_store(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which clients find a new S3 server that verifies signatures; else skip the test."""
    node = shutil.which("node")
    if node is None or not (S3RVER / "node_modules").is_dir():
        pytest.skip("s3rver is not installed; `make servers` installs it where npm is")
    server = subprocess.Popen(
        [node, "-e", _S3RVER, str(folder)], cwd=S3RVER,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url, "s3rver did not start"
        yield {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        }  # fmt: skip
    finally:
        server.kill()
        server.wait()
