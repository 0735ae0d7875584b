"""Streaming over HTTP beside streaming from disk: 50 ms of latency, 100 MB/s per connection, simulated.

    python benchmarks/remote.py                   # about two minutes and 3 GB of disk

A server on loopback delays each answer by `--latency` and paces each connection. The dataset has JPEG frames,
as published datasets do, in three times as many shards as are fetched ahead. Epochs over HTTP with an empty
cache alternate with epochs from disk; samples/s are of the batches after the first shard.

The target, 90 % of the local throughput, assumes a processor that is free for downloads: fetching and
verifying take CPU time. It is therefore checked with one decoding thread; a row with one worker per processor
shows the rest. The server shares the processors; its CPU seconds are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import Claim, at_least, main, make_parser, set_quick
from stream import make_ours, make_raw

SHARD = 100
BATCH = 20


class Server:
    """Server of files with ranges, delayed and paced."""

    def __init__(self, root: Path, latency: float, rate: float) -> None:
        self.root, self.latency, self.rate = root, latency, rate

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until its client leaves."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(self.latency)
                await self.send(head.decode(), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def send(self, head: str, writer: asyncio.StreamWriter) -> None:
        """One file, or a range of it."""
        path = self.root / head.split(" ", 2)[1].lstrip("/")
        if not path.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        size = path.stat().st_size
        asked = re.search(r"[Rr]ange: bytes=(\d+)-(\d*)", head)
        first = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1, size) if asked and asked[2] else size
        status = "206 Partial Content" if asked else "200 OK"
        lines = f"HTTP/1.1 {status}\r\nContent-Length: {end - first}\r\nAccept-Ranges: bytes\r\n"
        writer.write(f"{lines}Content-Range: bytes {first}-{end - 1}/{size}\r\n\r\n".encode())
        if head.startswith("HEAD"):
            return
        began, sent = time.perf_counter(), 0
        with path.open("rb") as stream:
            stream.seek(first)
            while sent < end - first:
                data = stream.read(min(1 << 18, end - first - sent))
                writer.write(data)
                await writer.drain()
                sent += len(data)
                await asyncio.sleep(max(began + sent / self.rate - time.perf_counter(), 0))


async def serve(root: Path, latency: float, rate: float) -> None:
    server = await asyncio.start_server(Server(root, latency, rate).answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def epoch(where: str | Path, cache: Path, workers: int) -> tuple[float, float]:
    """Return the seconds to the first batch, and the samples per second after the first shard."""
    import avdata

    began = time.perf_counter()
    loader = avdata.open(where, "train", cache=cache).loader(BATCH, num_workers=workers)
    first, settled, after = 0.0, 0.0, 0
    for number, _ in enumerate(loader):
        if number == 0:
            first = time.perf_counter() - began
        if (number + 1) * BATCH == SHARD:
            settled = time.perf_counter()
        elif settled:
            after += BATCH
    return first, after / (time.perf_counter() - settled)


def measure(options: argparse.Namespace) -> list[Claim]:
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "data"
        if not (data / "raw").exists():
            make_raw(data, options.samples)
        if not (data / "ours-jpeg").exists():
            make_ours(data, "jpeg", SHARD)
        command = [sys.executable, __file__, "--serve", str(data / "ours-jpeg")]
        command += ["--latency", str(options.latency), "--rate", str(options.rate)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            epoch(data / "ours-jpeg", Path(folder) / "none", 2)  # imports, and the page cache
            for workers in options.workers:
                local, remote = [], []
                for number in range(options.rounds):
                    local.append(epoch(data / "ours-jpeg", Path(folder) / "none", workers))
                    remote.append(epoch(url, Path(folder) / f"cache-{workers}-{number}", workers))
                ratio = print_rates(workers, local, remote)
                name = f"remote samples/s ÷ local, JPEG, {options.samples:,} samples, {workers} workers"
                # With a worker for each processor, none is free for downloads.
                claims.append(at_least(name, ratio, 0.9) if workers <= 1 else Claim(name, ratio))
            server.terminate()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    served = (usage.ru_utime + usage.ru_stime) / options.rounds / len(options.workers)
    print(f"CPU time of the server: {served:.2f} s per epoch")
    return claims


def print_rates(workers: int, local: list[tuple[float, float]], remote: list[tuple[float, float]]) -> float:
    """Print the medians of the epochs from disk and over HTTP, and return the ratio of their rates."""
    rates = []
    for name, epochs in (("disk", local), ("HTTP", remote)):
        first, rate = (statistics.median(values) for values in zip(*epochs, strict=True))
        rates.append(rate)
        line = f"{workers} workers, {name}  first batch {first:6.3f} s   then {rate:7.0f} samples/s"
        print(line, flush=True)
    return rates[1] / rates[0]


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=100e6, help="bytes per second of a connection")
    parser.add_argument("--data", type=Path, help="folder of the data, used again; default: temporary")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = set_quick(parser, samples=1200, rounds=1, workers=[1])
    if options.serve:
        asyncio.run(serve(options.serve, options.latency, options.rate))
    else:
        main(options, measure)
