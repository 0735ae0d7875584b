"""Passwords and signatures in URLs reach no output: terminal, logs, errors, files."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.http_server import LoopbackServer, reply_status, running_server
from support.tiny_dataset import SINGLE_FILE, make_manifest, make_recipe

import avdata
from avdata.cli.console import print_json, run_command
from avdata.cli.main import app
from avdata.errors import AvdataError, SourceError, redact_url
from avdata.manifest import Source
from avdata.sources.download import download
from avdata.sources.http import HttpClient

SECRET = "hunter2"

LOGIN = f"me:{SECRET}@"

QUERY = f"?download=1&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}&token={SECRET}"


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("avdata.sources.fetcher.backoff", lambda attempt: 0.01)
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def servers() -> Iterator[Callable[..., LoopbackServer]]:
    with ExitStack() as running:
        yield lambda *arguments: running.enter_context(running_server(*arguments))


def files_with_the_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@given(
    st.sampled_from(["https", "http", "lfs+https", "s3", "hf"]),
    st.text("abc:%@!$*+,;=~._-", max_size=8),
    st.sampled_from(["", "/", "/set/a.tar"]),
    st.sampled_from(["", ". ", ") ", '" ', ": HTTP 403", "\n"]),
)
def test_redact_url_removes_every_login_and_query(scheme: str, extra: str, path: str, end: str) -> None:
    query = "" if scheme in ("s3", "hf") else f"?a=b&sig={SECRET}{extra.replace('@', '')}#x={SECRET}"
    redacted = redact_url(f"failed: {scheme}://{extra}{SECRET}@example.org{path}{query}{end}")
    assert SECRET not in redacted
    assert redacted.startswith(f"failed: {scheme}://example.org{path}")
    assert redact_url(redacted) == redacted


@pytest.mark.parametrize("text", ["({})", "url='{}', x", '"{}".', "see {}, {}."])
@pytest.mark.parametrize("mark", ["'", ")", "(')"])
def test_redact_url_keeps_the_marks_around_a_url_and_not_those_in_it(mark: str, text: str) -> None:
    url = f"HTTPS://me:a{mark.strip('()')}{SECRET}@example.org/a(1).zip"
    queries = (f"?sig=a{mark}{SECRET}", f"?a{mark}#{SECRET}", f"#{mark}{SECRET}")
    expected = text.replace("{}", "HTTPS://example.org/a(1).zip")
    assert [redact_url(text.replace("{}", url + query)) for query in queries] == [expected] * 3


@pytest.mark.parametrize(
    "text",
    ["raw/part-?.tar", "s3://bucket/part-??.tar", "https://example.org/a.tgz?download=1", "a@b.org", "Why?"],
)
def test_redact_url_keeps_text_without_secrets(text: str) -> None:
    assert redact_url(text) == text


@pytest.mark.parametrize(
    "text", ["x", "https://", "?a", "a=b&", ".", "..a", "http://a?.", "a://b@", "'", ")a"]
)
def test_redact_url_takes_time_in_proportion_to_the_text(text: str) -> None:
    began = time.process_time()
    redact_url(f"https://example.org/?{text * 100_000}")
    redact_url(text * 100_000)
    assert time.process_time() - began < 1


def test_redact_url_removes_the_query_of_a_path() -> None:
    # As urllib3 and requests state it.
    text = f"Max retries exceeded with url: /set/a.tar?X-Amz-Signature={SECRET} (Caused by x)"
    assert redact_url(text) == "Max retries exceeded with url: /set/a.tar (Caused by x)"


def test_errors_have_no_secrets() -> None:
    error = AvdataError(f"no https://{LOGIN}example.org/a", hint=f"see https://example.org/{QUERY}")
    assert SECRET not in f"{error} {error!r} {error.args}"


def test_print_json_redacts_urls_and_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"error": f'"https://{LOGIN}h/a{QUERY}" failed', "size": 3})
    assert json.loads(capsys.readouterr().out) == {"error": '"https://h/a?download=1" failed', "size": 3}


def run(words: list[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["avdata", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command(app)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_no_output_of_a_preparation_contains_a_secret(
    cremad_mock: Path,
    servers: Callable[..., LoopbackServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    files = {
        path.relative_to(cremad_mock).as_posix(): path.read_bytes()
        for path in cremad_mock.rglob("*")
        if path.is_file()
    }
    server, mirror = servers(files), servers()
    facts = json.loads((cremad_mock / "manifest.json").read_text())
    urls = [f"{each.url.replace('//', f'//{LOGIN}')}/{{path}}{QUERY}" for each in (mirror, server)]
    facts |= {"sources": [{"name": "media", "urls": urls}], "homepage": urls[0]}
    manifest, out = tmp_path / "secret.json", tmp_path / "out"
    manifest.write_text(json.dumps(facts))
    words = ["prepare", "cremad", "--manifest", manifest, "--output", out, "--limit", 2, "--workers", 0]

    refuse = reply_status(404)
    server.always = lambda handler, content: (
        not handler.record.path.endswith(".csv") and refuse(handler, content)
    )
    assert run([*words, "--json"], monkeypatch) == 1
    assert (out / ".avdata" / "plan.json").is_file()
    assert (tmp_path / "cache/sources/cremad/.avdata/attempts.jsonl").is_file()
    assert files_with_the_secret(tmp_path) == [manifest]
    server.always = None
    assert run([*words, "--debug"], monkeypatch) == 0
    assert run(["verify", out], monkeypatch) == 0
    assert run(["report", out], monkeypatch) == 0
    assert files_with_the_secret(tmp_path) == [manifest]

    terminal = capsys.readouterr()
    assert "HTTP 404" in terminal.err
    assert SECRET not in terminal.out + terminal.err + caplog.text
    (source,) = json.loads((out / "dataset.json").read_text())["source"]["sources"]
    assert source["urls"] == [f"{each.url}/{{path}}?download=1" for each in (mirror, server)]
    assert f"{server.url}/" in (out / "README.md").read_text()


def test_partial_file_state_has_no_secret_and_resumes(
    servers: Callable[..., LoopbackServer], tmp_path: Path
) -> None:
    content = bytes(range(256)) * 800
    server = servers({SINGLE_FILE: content})

    def fetch(token: str) -> None:
        url = f"{server.url.replace('//', f'//{LOGIN}')}/{SINGLE_FILE}?token={token}"
        manifest = make_manifest([Source(name="it", urls=(url,), into=SINGLE_FILE)], {})
        download(make_recipe(), manifest=manifest, output=tmp_path / "root")

    server.faults[f"/{SINGLE_FILE}"] += [
        lambda handler, content: (handler.serve(content, cut=70_000), True)[1],
        reply_status(404),
    ]
    with pytest.raises(SourceError):
        fetch(f"{SECRET}-1")
    assert (tmp_path / "root" / f"{SINGLE_FILE}.part.json").is_file()
    assert files_with_the_secret(tmp_path) == []
    server.requests.clear()
    fetch(f"{SECRET}-2")
    assert server.range_starts(f"/{SINGLE_FILE}") == [70_000]
    assert (tmp_path / "root" / SINGLE_FILE).read_bytes() == content


def test_http_client_sends_no_credentials_to_a_redirects_host(servers: Callable[..., LoopbackServer]) -> None:
    storage, front = servers({"f": b"content"}), servers()

    def redirect(handler: Any) -> None:
        handler.reply(302, b"", {"Location": f"{storage.url}/f"})

    front.pages["/f"] = redirect
    headers = {"Authorization": SECRET, "X-Token": SECRET, "Cookie": SECRET, "Range": "bytes=3-"}
    client = HttpClient(1)
    with client.open(front.url.replace("//", f"//{LOGIN}") + "/f", headers) as response:
        assert response.read() == b"tent"
    client.close()
    assert front.requests[0].headers["X-Token"] == SECRET
    (request,) = storage.requests
    assert SECRET not in json.dumps(dict(request.headers))
    assert request.headers["Range"] == "bytes=3-"


def test_open_sends_no_credentials_to_a_redirects_host(
    servers: Callable[..., LoopbackServer], synthetic_set: Path, tmp_path: Path
) -> None:
    """The client of datasets on a web server is fsspec's, with aiohttp."""
    storage, front = servers(), servers()
    for path in (path for path in synthetic_set.rglob("*") if path.is_file()):
        name = f"/{path.relative_to(synthetic_set).as_posix()}"
        storage.files[name] = path.read_bytes()
        front.pages[name] = lambda handler: handler.reply(
            302, b"", {"Location": storage.url + handler.record.path}
        )
    data = avdata.open(front.url.replace("//", f"//{LOGIN}"), "test", cache=tmp_path)
    assert data[0].key
    assert front.requests[0].headers["Authorization"]
    assert not any("Authorization" in request.headers for request in storage.requests)
    assert len(storage.requests) > 1
