"""Share of a media file that decoding it by range requests transfers.

    python benchmarks/ranges.py

One row per container. A generated clip is served on loopback and read once as `avdata prepare` reads it
(every packet of the video, every sample of the audio), through a file object that fetches ranges on demand.
`as asked` are the decoder's own reads, `in blocks` those of 64 KiB, as a network client would request. 1
means that the complete file was sent, and that range requests save nothing.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from claims import Claim, main, make_parser

from avdata.testing.reference_clips import REFERENCE_CLIPS

BLOCK = 1 << 16


class Server(BaseHTTPRequestHandler):
    """Server of ranges that counts the bytes sent."""

    sent = 0
    folder = Path()

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer a range."""
        first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
        with (self.folder / self.path[1:]).open("rb") as file:
            file.seek(first)
            data = file.read(last - first + 1)
        type(self).sent += len(data)
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Ranged(io.RawIOBase):
    """Remote file whose ranges are fetched when they are read."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size, self.at = url, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; nothing is fetched."""
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        """The byte it is at."""
        return self.at

    def readinto(self, into: Any) -> int:
        """Fetch as many bytes as fit."""
        count = min(len(into), self.size - self.at)
        if count <= 0:
            return 0
        asked = Request(self.url, headers={"Range": f"bytes={self.at}-{self.at + count - 1}"})  # noqa: S310
        with urlopen(asked) as answer:  # noqa: S310
            into[:count] = answer.read()
        self.at += count
        return count


def read_as_prepare_does(file: Any) -> None:
    """Read every packet of the first video and audio streams, as `avdata.media.video.open_video` does."""
    import av

    with av.open(file, buffer_size=BLOCK) as container:
        wanted = [*container.streams.video[:1], *container.streams.audio[:1]]
        for packet in container.demux(*wanted):
            if packet.stream.type == "audio":
                packet.decode()


def measure(_options: argparse.Namespace) -> list[Claim]:
    with tempfile.TemporaryDirectory() as name:
        Server.folder = Path(name)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ways = {"as asked": lambda file: file, "in blocks": partial(io.BufferedReader, buffer_size=BLOCK)}
        print(f"{'case':18}{'bytes':>10}" + "".join(f"{way:>12}" for way in ways))
        shares = []
        for case_name, case in REFERENCE_CLIPS.items():
            path = case.make(Path(name), case_name).video
            size, row = path.stat().st_size, []
            for wrap in ways.values():
                Server.sent = 0
                url = f"http://127.0.0.1:{server.server_address[1]}/{path.name}"
                read_as_prepare_does(wrap(Ranged(url, size)))
                row.append(Server.sent / size)
            shares.append(row[0])
            print(f"{case_name:18}{size:10,}" + "".join(f"{share:12.2f}" for share in row))
        server.shutdown()
    return [Claim("least share of a file that decoding by ranges transfers", min(shares), unit="of the file")]


if __name__ == "__main__":
    main(make_parser(__doc__).parse_args(), measure)
