"""Streaming from afar beside streaming from disk: 50 ms of latency, 100 MB/s a connection, simulated.

    python benchmarks/remote.py                   # some two minutes and 3 GB of disk

A server on loopback answers each request `--latency` late and paces each connection. The set has JPEG frames,
as published sets do, in three times as many shards as are fetched ahead. An epoch over HTTP into an empty
cache takes turns with one from disk; samples/s are of the batches after the first shard's worth. Promise:
90 % of the local throughput, where a processor is left to fetch with: fetching and proving take CPU too, and
where as many workers decode as there are processors they have none to give. So it is measured with one thread
that decodes, and with a worker for each processor. The server shares the processors, which one elsewhere does
not: the CPU seconds that it took are printed too.
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

sys.path.insert(0, str(Path(__file__).parent))
from stream import make_ours, make_raw

SHARD = 100
BATCH = 20


class Server:
    """Files below a folder, with ranges, late and paced."""

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
    """Seconds to the first batch, and samples a second after the first shard's worth of them."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second of a connection")
    parser.add_argument("--data", type=Path, help="kept, and used again; otherwise a temporary folder")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.latency, options.rate))
        return
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
                near, far = [], []
                for number in range(options.rounds):
                    near.append(epoch(data / "ours-jpeg", Path(folder) / "none", workers))
                    far.append(epoch(url, Path(folder) / f"cache-{workers}-{number}", workers))
                told(workers, near, far)
            server.terminate()
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    served = (spent.ru_utime + spent.ru_stime) / options.rounds / len(options.workers)
    print(f"the server took {served:.2f} s of CPU an epoch")


def told(workers: int, near: list[tuple[float, float]], far: list[tuple[float, float]]) -> None:
    """Print the medians of the epochs from disk and from afar, and their ratio."""
    rates = []
    for name, found in (("disk", near), ("afar", far)):
        first, rate = (statistics.median(values) for values in zip(*found, strict=True))
        rates.append(rate)
        print(f"{workers} workers, {name}  first batch {first:6.3f} s   then {rate:7.0f} samples/s")
    print(f"{workers} workers: afar is {rates[1] / rates[0]:.0%} of disk", flush=True)


if __name__ == "__main__":
    main()
