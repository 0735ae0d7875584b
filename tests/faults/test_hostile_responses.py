"""Servers whose status, headers and redirects are hostile: one short sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.http_server import Handler, running_server
from support.tiny_dataset import SINGLE_FILE, make_manifest, make_recipe

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.sources.download import download
from avdata.sources.types import TransferError
from avdata.storage.retry import retry_after

LONG_NUMBER = "9" * 5000

ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "redirect to a file": (302, {"Location": "file:///etc/passwd"}),
    "redirect to ftp": (302, {"Location": "ftp://127.0.0.1/a"}),
    "redirect to data": (302, {"Location": "data:,AAAA"}),
    "redirect to a wrong port": (302, {"Location": "http://127.0.0.1:99999/"}),
    "redirect to a wrong address": (302, {"Location": "http://[::1"}),
    "redirect without location": (302, {}),
    "long location": (302, {"Location": f"file:///{'a' * 60_000}"}),
    "long size": (200, {"Content-Length": LONG_NUMBER}),
    "long range": (206, {"Content-Range": f"bytes 0-1/{LONG_NUMBER}"}),
    "long explanation": (403, {"X-Error-Message": "\x1b[31m" + "m" * 5000}),
    "no content": (204, {}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_download_reports_a_hostile_answer_in_one_sentence(name: str, tmp_path: Path) -> None:
    status, headers = ANSWERS[name]

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for field, value in headers.items():
            handler.send_header(field, value)
        if "Content-Length" not in headers:
            handler.send_header("Content-Length", "0")
        handler.end_headers()
        handler.hang_up()

    files = {SINGLE_FILE: b"A" * 100}
    with running_server() as server:
        server.pages["/a"] = answer
        source = Source(name="media", urls=(f"{server.url}/a",), into=SINGLE_FILE)
        with pytest.raises(SourceError) as caught:
            download(
                make_recipe(), output=tmp_path, manifest=make_manifest([source], files), give_up_after=0.1
            )
    assert "\n" not in caught.value.message
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.message) < 1000
    assert not (tmp_path / SINGLE_FILE).exists()


@pytest.mark.parametrize("value", [LONG_NUMBER, "-5", "nan", "Fri, 31 Dec 99999 23:59:59 GMT", "\xb2", "x"])
def test_retry_after_ignores_what_is_neither_number_nor_date(value: str) -> None:
    assert retry_after(value) is None


def test_transfer_error_is_one_short_line_without_controls() -> None:
    error = TransferError("HTTP 403 \x1b[31m" + "x" * 100_000)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 500
