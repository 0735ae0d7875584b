"""Speed of downloads beside a loop of `requests`, aria2c and curl, on loopback.

    python benchmarks/download.py                # all: about ten minutes and 4 GB of disk
    python benchmarks/download.py --files 400 --gigabytes 0.5 --rounds 1

Small files: `--files` of 80 KB each, from servers that differ (`SERVERS`). Large: one file of `--gigabytes`.
The clients take turns with equal connections, and complete processes are timed, avdata's with the start of
Python. The ratios are of the medians of all rounds; those of the best rounds, which other load affects less,
are printed beside. avdata hashes, syncs and renames; the others only write. Every file is compared with what
was sent. Peak memory includes what a process inherits from this one, about 40 MB. Needs aria2c and curl.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from claims import Claim, at_least, at_most, main, make_parser, set_quick

SIZE = 80_000
CONNECTIONS = 16
MAX_RATIO = 1.1  # time of avdata ÷ time of aria2c
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
    answer = requests.get(f"{sys.argv[1]}/far/{number}.bin", timeout=60)
    answer.raise_for_status()
    (folder / f"{number}.bin").write_bytes(answer.content)
"""


@dataclass(frozen=True)
class Conditions:
    """How a server answers.

    Attributes:
        title: what the report calls it.
        share: part of `--files` that is fetched.
        latency: seconds before each answer.
        rate: requests per second; those above are refused with 503, as by nginx's limit_req.
        failing: one request of so many fails: every second one with 503, the others are cut.
    """

    title: str
    share: float = 1.0
    latency: float = 0.0
    rate: float | None = None
    failing: int | None = None


SERVERS = {
    "fast": Conditions("no limit"),
    "far": Conditions("100 ms latency", share=0.5, latency=0.1),
    "limited": Conditions("20 requests/s", share=0.03, rate=20),
    "faulty": Conditions("2 % of requests failing", latency=0.02, failing=50),
}


def body(number: int) -> bytes:
    """Return the bytes of a file, which server and manifest compute alike."""
    block = hashlib.sha256(str(number).encode()).digest()
    return (block * (SIZE // len(block) + 1))[:SIZE]


class Server(asyncio.Protocol):
    """Minimal server, so that the clients are measured."""

    big: Path
    requests: ClassVar[Counter[str]] = Counter()
    free_at: ClassVar[dict[str, float]] = {}

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
            if path == "/big.bin":
                self.task = loop.create_task(self.stream())
            else:
                _, name, file = path.split("/")
                span = re.search(rb"(?i)\r\nrange: bytes=(\d+)-", request)
                start = int(span[1]) if span else 0
                loop.call_later(SERVERS[name].latency, self.answer, name, body(int(file[:-4])), start)

    def answer(self, name: str, content: bytes, start: int) -> None:
        """Send a small file from byte `start`, refuse it, or break the connection in its middle."""
        if self.transport.is_closing():
            return
        server = SERVERS[name]
        self.requests[name] += 1
        now = time.monotonic()
        refused = server.rate is not None and now < self.free_at.get(name, 0)
        if server.rate is not None and not refused:
            self.free_at[name] = now + 1 / server.rate
        failures, rest = divmod(self.requests[name], server.failing or sys.maxsize)
        if refused or (failures and rest == 0 and failures % 2):
            self.transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return
        status = "206 Partial Content" if start else "200 OK"
        span = f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\n" if start else ""
        content = content[start:]
        head = f'HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{span}ETag: "1"\r\n\r\n'.encode()
        if failures and rest == 0:
            self.transport.write(head + content[: len(content) // 2])
            self.transport.close()
        else:
            self.transport.write(head + content)

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
    """Return the seconds and the peak resident MB of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
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


def compare(
    name: str, folder: Path, rounds: int, contenders: dict[str, list[str]], expected: dict[str, str]
) -> tuple[dict[str, list[float]], Counter[str]]:
    """Let the clients take turns; return the seconds and the lost files of each.

    `expected` has the SHA-256 of each file.
    """
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    lost: Counter[str] = Counter()
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for contender, command in contenders.items():
            target = folder / "target"
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            # Write and discard what the previous client left.
            os.sync()
            seconds, memory[contender] = run([part.replace("TARGET", str(target)) for part in command])
            times[contender].append(seconds)
            lost[contender] += sum(not is_whole(target, file, sha256) for file, sha256 in expected.items())
    print(f"\n{name}")
    for contender, taken in times.items():
        spread = f"{min(taken):.2f}-{max(taken):.2f}"
        facts = f"peak {memory[contender]:4.0f} MB  lost {lost[contender]} files"
        print(f"  {contender:16} {statistics.median(taken):7.2f} s ({spread:>11})  {facts}")
    return times, lost


def is_whole(target: Path, file: str, sha256: str) -> bool:
    """Return whether a client wrote the file; aria2c and the loop leave out its folder."""
    for path in (target / file, target / Path(file).name):
        if path.is_file():
            with path.open("rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest() == sha256
    return False


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the ratio of the medians, and print it with that of the best rounds."""
    medians = statistics.median(numerator) / statistics.median(denominator)
    print(f"  ratio: {medians:.2f} by medians, {min(numerator) / min(denominator):.2f} by best rounds")
    return medians


def small(folder: Path, url: str, name: str, count: int, rounds: int) -> list[Claim]:
    """Download small files from one of the servers."""
    expected = {f"{name}/{number}.bin": hashlib.sha256(body(number)).hexdigest() for number in range(count)}
    files: list[dict[str, object]] = [
        {"path": path, "checksum": f"sha256:{sha256}", "bytes": SIZE} for path, sha256 in expected.items()
    ]
    path = manifest(folder, url, files)
    urls = folder / "urls"
    urls.write_text("".join(f"{url}/{path}\n" for path in expected))
    aria = f"-j{CONNECTIONS} -x1 -s1 --max-tries=0 --retry-wait=1 --file-allocation=none -q".split()
    title = f"{count:,} files of {SIZE:,} bytes, {SERVERS[name].title}, {CONNECTIONS} connections"
    commands = {
        "avdata": [sys.executable, "-c", RECIPE, str(path), "TARGET", str(CONNECTIONS)],
        "aria2c": ["aria2c", *aria, "-i", str(urls), "-d", "TARGET"],
    }
    times, lost = compare(title, folder, rounds, commands, expected)
    claims = [
        at_most(f"download: time ÷ aria2c, {title}", ratio(times["avdata"], times["aria2c"]), MAX_RATIO),
        at_most(f"download: lost files, {title}", lost["avdata"], 0, "files"),
    ]
    if name == "far":
        few = max(count // 8, 1)
        command = [sys.executable, "-c", LOOP, url, "TARGET", str(few)]
        part = dict(list(expected.items())[:few])
        loop, _ = compare(f"{few:,} of them, one after another", folder, 1, {"requests loop": command}, part)
        speed = ratio(
            [time / few for time in loop["requests loop"]], [time / count for time in times["avdata"]]
        )
        claims.append(at_least(f"download: time per file of a loop of requests ÷ avdata, {title}", speed, 10))
    return claims


def large(folder: Path, url: str, big: Path, rounds: int) -> list[Claim]:
    """Download one large file."""
    with big.open("rb") as file:
        checksum = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    path = manifest(folder, url, [{"path": "big.bin", "checksum": checksum, "bytes": big.stat().st_size}])
    out = "mkdir -p TARGET && curl -sf -o TARGET/big.bin " + f"{url}/big.bin"
    title = f"one file of {big.stat().st_size / 1e9:.1f} GB"
    times, _ = compare(
        f"{title}, in {folder}",
        folder,
        rounds,
        {
            "avdata": [sys.executable, "-c", RECIPE, str(path), "TARGET", "1"],
            "curl": ["sh", "-c", out],
            "curl and sync": ["sh", "-c", f"{out} && sync TARGET/big.bin"],
        },
        {"big.bin": checksum.removeprefix("sha256:")},
    )
    return [
        at_least(f"download: curl ÷ time, {title}", ratio(times["curl"], times["avdata"]), 0.9),
        # avdata syncs as well.
        Claim(f"download: curl and sync ÷ time, {title}", ratio(times["curl and sync"], times["avdata"])),
    ]


def measure(options: argparse.Namespace) -> list[Claim]:
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
        claims = []
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            for server_name in options.servers:
                count = max(1, round(options.files * SERVERS[server_name].share))
                claims += small(folder, url, server_name, count, options.rounds)
            if options.gigabytes:
                claims += large(folder, url, big, options.rounds)
        finally:
            server.terminate()
            server.wait()
    return claims


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=SERVERS)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the large file; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; on a tmpfs, the disk does not count")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = set_quick(parser, files=1000, gigabytes=1.0, rounds=1)
    if options.serve:
        asyncio.run(serve(options.serve))
    else:
        main(options, measure)
