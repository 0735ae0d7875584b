"""How fast sources are downloaded, beside a loop of `requests`, aria2c and curl, on loopback.

    python benchmarks/download.py                # all: some five minutes and 4 GB of disk
    python benchmarks/download.py --files 400 --gigabytes 0.5 --rounds 1

Small files: `--files` of 80 KB each, every answer 20 ms late. Large: one file of `--gigabytes`. The
contenders take turns, and whole processes are timed, ours with the start of Python. The ratios are of
the medians of all rounds and, for a machine on which other things run, of the best rounds. We hash, sync
and rename; the others only write. Peak memory includes what a process inherits from this one, some 40
MB. Needs aria2c and curl.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATENCY = 0.020
SIZE = 80_000
CONNECTIONS = 16
RECIPE = """
import sys
from avdata.sources.download import download
from avdata.recipe import Recipe
recipe = Recipe("tiny", 1, "Tiny", ("a",), {"o": "one"}, "o", lambda *a: [], lambda *a: None)
download(recipe, manifest=sys.argv[1], output=sys.argv[2], connections=int(sys.argv[3]))
"""
LOOP = """
import pathlib, requests, sys
folder = pathlib.Path(sys.argv[2]); folder.mkdir()
for number in range(int(sys.argv[3])):
    answer = requests.get(f"{sys.argv[1]}/small/{number}.bin", timeout=60)
    answer.raise_for_status()
    (folder / f"{number}.bin").write_bytes(answer.content)
"""


def body(number: int) -> bytes:
    """A file's bytes: different for each, the same in server and manifest."""
    block = hashlib.sha256(str(number).encode()).digest()
    return (block * (SIZE // len(block) + 1))[:SIZE]


class Server(asyncio.Protocol):
    """As little server as possible, so that the clients are what is measured."""

    big: Path

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection's transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""
        # An answer of 80 KB leaves in one piece: the machine's own default would hold half of it back.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self.received += data
        while b"\r\n\r\n" in self.received:
            request, self.received = self.received.split(b"\r\n\r\n", 1)
            path = request.split(b" ", 2)[1].decode()
            loop = asyncio.get_running_loop()
            if path.startswith("/small/"):
                content = body(int(path[7:-4]))
                loop.call_later(LATENCY, self.answer, content)
            else:
                self.task = loop.create_task(self.stream())

    def answer(self, content: bytes) -> None:
        """Send a small file."""
        if not self.transport.is_closing():
            head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nETag: "1"\r\n\r\n'
            self.transport.write(head.encode() + content)

    async def stream(self) -> None:
        """Send the large file as fast as the kernel can."""
        self.transport.write(f"HTTP/1.1 200 OK\r\nContent-Length: {self.big.stat().st_size}\r\n\r\n".encode())
        with self.big.open("rb") as file:
            await asyncio.get_running_loop().sendfile(self.transport, file)


async def serve(big: Path) -> None:
    Server.big = big
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MB of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed with {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def manifest(folder: Path, url: str, files: list[dict[str, object]]) -> Path:
    facts = {
        "name": "tiny",
        "title": "Tiny",
        "homepage": url,
        "license": {"id": "odbl", "name": "ODbL", "publish": "yes", "note": "none"},
        "citation": "none",
        "sources": [{"name": "media", "urls": [url + "/{path}"]}],
        "files": files,
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(facts))
    return path


def compare(name: str, folder: Path, rounds: int, contenders: dict[str, list[str]]) -> dict[str, list[float]]:
    """Let the contenders take turns; the seconds of each."""
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for contender, command in contenders.items():
            target = folder / "target"
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            # What the last contender left to write or to discard is not the next one's work.
            os.sync()
            seconds, memory[contender] = run([part.replace("TARGET", str(target)) for part in command])
            times[contender].append(seconds)
    print(f"\n{name}")
    for contender, taken in times.items():
        spread = f"{min(taken):.2f}-{max(taken):.2f}"
        median = statistics.median(taken)
        print(f"  {contender:16} {median:7.2f} s ({spread:>11})  peak {memory[contender]:4.0f} MB")
    return times


def ratio(other: list[float], ours: list[float]) -> str:
    """How many times as long the other takes, by medians and by best rounds."""
    medians = statistics.median(other) / statistics.median(ours)
    return f"{medians:.2f} by medians, {min(other) / min(ours):.2f} by best rounds"


def small(folder: Path, url: str, count: int, rounds: int) -> None:
    files: list[dict[str, object]] = [
        {
            "path": f"small/{number}.bin",
            "checksum": "sha256:" + hashlib.sha256(body(number)).hexdigest(),
            "bytes": SIZE,
        }
        for number in range(count)
    ]
    path = manifest(folder, url, files)
    urls = folder / "urls"
    urls.write_text("".join(f"{url}/{facts['path']}\n" for facts in files))
    aria = f"-j{CONNECTIONS} -x1 -s1 --file-allocation=none -q".split()
    times = compare(
        f"{count:,} files of {SIZE:,} bytes, {LATENCY * 1000:.0f} ms latency, {CONNECTIONS} connections",
        folder,
        rounds,
        {
            "avdata": [sys.executable, "-c", RECIPE, str(path), "TARGET", str(CONNECTIONS)],
            "aria2c": ["aria2c", *aria, "-i", str(urls), "-d", "TARGET"],
        },
    )
    command = [sys.executable, "-c", LOOP, url, "TARGET", str(count)]
    times |= compare("the same, one after another", folder, 1, {"requests loop": command})
    print(f"  requests loop / avdata: {ratio(times['requests loop'], times['avdata'])} (aim: 10)")
    print(f"  aria2c / avdata: {ratio(times['aria2c'], times['avdata'])} (aim: 1)")


def large(folder: Path, url: str, big: Path, rounds: int) -> None:
    with big.open("rb") as file:
        checksum = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    path = manifest(folder, url, [{"path": "big.bin", "checksum": checksum, "bytes": big.stat().st_size}])
    out = "mkdir -p TARGET && curl -sf -o TARGET/big.bin " + f"{url}/big.bin"
    times = compare(
        f"one file of {big.stat().st_size / 1e9:.1f} GB, in {folder}",
        folder,
        rounds,
        {
            "avdata": [sys.executable, "-c", RECIPE, str(path), "TARGET", "1"],
            "curl": ["sh", "-c", out],
            "curl and sync": ["sh", "-c", f"{out} && sync TARGET/big.bin"],
        },
    )
    print(f"  curl / avdata: {ratio(times['curl'], times['avdata'])} (aim: 0.9)")
    print(f"  curl and sync / avdata: {ratio(times['curl and sync'], times['avdata'])}, as we sync too")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a tmpfs leaves the disk out of it")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        os.environ["AVDATA_CACHE"] = str(folder / "cache")
        big = folder / "big.bin"
        block = os.urandom(1 << 24)
        with big.open("wb") as file:
            for _ in range(max(1, round(options.gigabytes * 1e9 / len(block)))):
                file.write(block)
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(big)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            small(folder, url, options.files, options.rounds)
            large(folder, url, big, options.rounds)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
