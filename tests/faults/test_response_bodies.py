"""Servers that send more bytes than a file has: the download stops at the size, and no file remains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.http_server import Handler, LoopbackServer, running_server
from support.tiny_dataset import SINGLE_FILE, make_manifest, make_recipe

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.sources import receiver
from avdata.sources.download import download
from avdata.sources.partial_file import PartialFile

SIZE = 154_000

BLOCK = bytes(64 << 10)


def endless_body(chunked: bool) -> Callable[[Handler, bytes], bool]:
    """Send a body without a length: the file, then zeros until the client hangs up."""

    def fault(handler: Handler, content: bytes) -> bool:
        handler.send_response(200)
        handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
        handler.end_headers()
        handler.close_connection = True
        with suppress(OSError):
            while not handler.loopback.closing.is_set():
                handler.send(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK)
        return True

    return fault


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with running_server({SINGLE_FILE: bytes(SIZE)}) as server:
        yield server


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the blocks written to disk."""
    sizes: list[int] = []
    write = PartialFile.write

    def record(part: PartialFile, data: bytes) -> None:
        sizes.append(len(data))
        write(part, data)

    monkeypatch.setattr(PartialFile, "write", record)
    return sizes


@pytest.mark.parametrize("chunked", [False, True])
def test_fetcher_stops_at_the_expected_size(
    chunked: bool, server: LoopbackServer, written: list[int], tmp_path: Path
) -> None:
    server.always = endless_body(chunked)
    source = Source(name="media", urls=(server.url + "/{path}",))
    manifest = make_manifest([source], {SINGLE_FILE: bytes(SIZE)})
    with pytest.raises(SourceError, match=f"more than {SIZE:,} bytes from the server"):
        download(make_recipe(), manifest=manifest, output=tmp_path / "root")
    assert sum(written) <= SIZE
    assert [path.name for path in (tmp_path / "root").rglob("*.wav*")] == []
    assert len(server.requests) == 1


def test_fetcher_stops_at_a_cap_if_no_size_is_known(
    server: LoopbackServer, written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "_MAX_UNSTATED_BYTES", 3 << 20)
    server.always = endless_body(chunked=True)
    manifest = make_manifest([Source(name="it", urls=(server.url + f"/{SINGLE_FILE}",))], {})
    with pytest.raises(SourceError, match="more than 3,145,728 bytes from the server") as caught:
        download(make_recipe(), manifest=manifest, output=tmp_path / "root")
    assert caught.value.hint is not None
    assert "State the size of the file as `bytes` in the manifest." in caught.value.hint
    assert sum(written) <= 3 << 20
    assert not list((tmp_path / "root").glob("*.part"))
