"""For each thing that goes wrong: the right bytes, or a clear error and nothing under a final name."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
import sys
import time
from email.utils import formatdate

import pytest
import trustme
from support.http_server import corrupt_byte, drop_after, ignore_ranges, reply_body, reply_status, stall_after
from support.tiny_dataset import make_manifest

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.storage.atomic import DiskError

PATH = "wav/c0001.wav"


@pytest.fixture
def one(tiny):
    """A dataset of a single file of 200 kB."""
    content = bytes(range(256)) * 800
    tiny.files = {PATH: content}
    tiny.server.files = {"/" + PATH: content}
    tiny.manifest = make_manifest([Source(name="media", urls=(tiny.server.url + "/{path}",))], tiny.files)
    return tiny


def expect_failure(one, match):
    with pytest.raises(SourceError, match=match) as caught:
        one.download()
    assert not (one.root / PATH).exists()
    return caught.value


def test_fetcher_resumes_a_dropped_connection_at_the_byte(one):
    one.server.faults["/" + PATH] += [drop_after(70_000), drop_after(80_000)]
    one.download()
    assert one.tree() == one.files
    assert one.server.range_starts("/" + PATH) == [0, 70_000, 150_000]
    assert one.server.bytes_sent() == 204_800


def test_fetcher_completes_a_file_despite_many_dropped_connections(tiny, monkeypatch):
    monkeypatch.setattr("avdata.sources.fetcher._PROGRESS_BYTES", 10_000)
    content = bytes(range(250)) * 1000
    tiny.files, tiny.server.files = {PATH: content}, {"/" + PATH: content}
    tiny.manifest = make_manifest([Source(name="media", urls=(tiny.server.url + "/{path}",))], tiny.files)

    def cut(handler, content):
        handler.serve(content, cut=12_000)
        return True

    tiny.server.always = cut
    tiny.download()
    assert tiny.tree() == tiny.files
    assert len(tiny.server.requests) == 21


def test_fetcher_resumes_a_stalled_connection_at_the_byte(one, monkeypatch):
    # Long enough for a busy machine to answer whatever else is asked of it.
    monkeypatch.setattr("avdata.sources.http.READ_TIMEOUT_S", 3.0)
    one.server.faults["/" + PATH].append(stall_after(50_000))
    one.download()
    assert one.tree() == one.files
    assert one.server.range_starts("/" + PATH) == [0, 50_000]
    assert "within 3 s" in one.log()[0]["error"]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_fetcher_retries_temporary_errors(one, code):
    one.server.faults["/" + PATH] += [reply_status(code)] * 2
    one.download()
    assert one.tree() == one.files
    assert [line["status"] for line in one.log()] == [code, code]


def test_fetcher_honors_retry_after_in_seconds(one):
    one.server.faults["/" + PATH].append(reply_status(429, {"Retry-After": "1"}))
    started = time.monotonic()
    one.download()
    assert time.monotonic() - started >= 1.0
    assert one.tree() == one.files


def test_fetcher_honors_retry_after_as_a_date(one):
    asked_for = []

    def busy(handler, content):
        asked_for.append(int(time.time()) + 2)
        handler.reply(503, b"trouble", {"Retry-After": formatdate(asked_for[0], usegmt=True)})
        return True

    one.server.faults["/" + PATH].append(busy)
    one.download()
    assert one.tree() == one.files
    # A pause may end a little early, and clocks are set.
    assert time.time() > asked_for[0] - 0.5


def test_fetcher_repeats_a_file_after_retry_after(tiny):
    tiny.server.faults["/wav/c0000.wav"].append(reply_status(429, {"Retry-After": "1"}))
    assert tiny.download(connections=1).fetched == 12
    assert tiny.server.range_starts("/wav/c0000.wav") == [0, 0]


def test_fetcher_does_not_wait_an_hour(one):
    one.server.always = reply_status(429, {"Retry-After": "3600"})
    error = expect_failure(one, "requests a delay of 3,600 s")
    assert "command later" in error.hint
    assert len(one.server.requests) == 1


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_fetcher_does_not_retry_permanent_errors(one, code):
    one.server.always = reply_status(code)
    expect_failure(one, f"HTTP {code}")
    assert len(one.server.requests) == 1


def test_fetcher_gives_up_after_six_attempts(one):
    one.server.always = reply_status(500)
    expect_failure(one, "HTTP 500")
    assert len(one.server.requests) == 6


def test_fetcher_rejects_a_wrong_size_before_the_body(one):
    one.server.always = reply_body(bytes(300_000))
    expect_failure(one, "300,000 bytes on the server, expected 204,800")
    assert len(one.server.requests) == 1


def test_fetcher_fetches_a_corrupt_file_again(one):
    one.server.faults["/" + PATH].append(corrupt_byte())
    one.download()
    assert one.tree() == one.files


def test_fetcher_rejects_a_file_with_a_wrong_checksum(one):
    one.server.always = corrupt_byte()
    expect_failure(one, "checksum mismatch")
    assert not (one.root / (PATH + ".part")).exists()
    assert len(one.server.requests) == 3


def test_fetcher_replaces_a_corrupt_file_from_a_mirror(one, serve):
    mirror = serve(one.files)
    urls = (one.server.url + "/{path}", mirror.url + "/{path}")
    one.manifest = make_manifest([Source(name="media", urls=urls)], one.files)
    one.server.always = corrupt_byte()
    one.download()
    assert one.tree() == one.files


def test_fetcher_resumes_a_partial_file_from_another_mirror(one, serve):
    mirror = serve(one.files)
    urls = (one.server.url + "/{path}", mirror.url + "/{path}")
    one.manifest = make_manifest([Source(name="media", urls=urls)], one.files)
    one.server.faults["/" + PATH] += [drop_after(60_000), reply_status(410)]
    one.download()
    assert one.tree() == one.files
    assert mirror.range_starts("/" + PATH) == [60_000]


def test_fetcher_restarts_if_the_server_ignores_ranges(one):
    one.server.faults["/" + PATH] += [drop_after(60_000), ignore_ranges]
    one.download()
    assert one.tree() == one.files


def test_fetcher_restarts_a_partial_file_that_is_too_long(one):
    (one.root / PATH).parent.mkdir(parents=True)
    (one.root / (PATH + ".part")).write_bytes(bytes(300_000))
    one.download()
    assert one.tree() == one.files
    assert one.server.range_starts("/" + PATH) == [0]


def test_fetcher_restarts_a_corrupt_partial_file(one):
    (one.root / PATH).parent.mkdir(parents=True)
    (one.root / (PATH + ".part")).write_bytes(bytes(1000))
    one.download()
    assert one.tree() == one.files
    assert one.server.range_starts("/" + PATH) == [1000, 0]


def test_fetcher_verifies_a_complete_partial_file_without_a_request(one):
    (one.root / PATH).parent.mkdir(parents=True)
    (one.root / (PATH + ".part")).write_bytes(one.files[PATH])
    one.download()
    assert one.tree() == one.files
    assert one.server.requests == []


def test_http_client_follows_a_redirect(one, serve):
    other = serve({"elsewhere": one.files[PATH]})
    one.server.pages["/" + PATH] = lambda handler: handler.reply(
        302, b"", {"Location": other.url + "/elsewhere"}
    )
    one.download()
    assert one.tree() == one.files


def test_http_client_rejects_a_redirect_loop(one):
    one.server.pages["/" + PATH] = lambda handler: handler.reply(302, b"", {"Location": "/b"})
    one.server.pages["/b"] = lambda handler: handler.reply(302, b"", {"Location": "/" + PATH})
    expect_failure(one, "redirect loop")


def test_http_client_limits_the_number_of_redirects(one):
    for number in range(30):
        following = {"Location": f"/{number + 1}"}
        one.server.pages[f"/{number}"] = lambda handler, following=following: handler.reply(
            302, b"", following
        )
    one.server.pages["/" + PATH] = one.server.pages["/0"]
    expect_failure(one, "more than 10 redirects")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_http_client_rejects_redirects_to_other_schemes(one, target):
    one.server.pages["/" + PATH] = lambda handler: handler.reply(302, b"", {"Location": target})
    expect_failure(one, "unsupported redirect")


def test_fetcher_rejects_a_web_page(one):
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    one.server.always = reply_body(page, "text/html")
    expect_failure(one, "a web page instead of the file")


def test_fetcher_rejects_a_git_lfs_pointer(one):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 204800\n"
    one.server.always = reply_body(pointer)
    expect_failure(one, "a git-LFS pointer instead")


def test_fetcher_rejects_a_web_page_of_the_expected_size(one):
    one.server.always = reply_body(b"<html>".ljust(204_800))
    expect_failure(one, "a web page instead")


def test_http_client_names_an_unreachable_server(one):
    # A port that is held and not listened on: nobody else can be given it meanwhile.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        source = Source(name="media", urls=(f"http://{address}/{{path}}",))
        one.manifest = make_manifest([source], one.files)
        expect_failure(one, f"no connection to {address}")


def test_http_client_rejects_an_untrusted_certificate(one, serve):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = serve(one.files, tls=context)
    one.manifest = make_manifest([Source(name="media", urls=(server.url + "/{path}",))], one.files)
    error = expect_failure(one, "no TLS connection")
    assert "SSL_CERT_FILE" in error.hint
    assert len(one.log()) == 1


def test_http_client_reads_a_certificate_authority_from_the_environment(one, serve, tmp_path, monkeypatch):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = serve(one.files, tls=context)
    one.manifest = make_manifest([Source(name="media", urls=(server.url + "/{path}",))], one.files)
    one.download()
    assert one.tree() == one.files


def test_http_client_uses_the_proxy_of_the_environment(one, serve, monkeypatch):
    proxy = serve()
    proxy.files[f"http://data.invalid/{PATH}"] = one.files[PATH]
    proxy.pages["/" + PATH] = lambda handler: handler.serve(one.files[PATH])
    monkeypatch.setenv("http_proxy", proxy.url)
    one.manifest = make_manifest([Source(name="media", urls=("http://data.invalid/{path}",))], one.files)
    one.download()
    assert one.tree() == one.files
    assert proxy.requests[0].headers["Host"] == "data.invalid"


def test_download_stops_at_once_on_a_full_disk(tiny, tmp_path):
    """The limit on a file's size is the disk's end as the process sees it."""
    manifest = tmp_path / "manifest.json"
    manifest.write_text(tiny.manifest.model_dump_json())
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
        "from avdata.sources.download import download; from avdata.errors import AvdataError\n"
        "from avdata.recipe import Recipe\n"
        "r = Recipe('tiny', 1, 'Tiny', ('a',), {'o': 'one'}, 'o', lambda *a: [], lambda *a: None)\n"
        "try: download(r, manifest=sys.argv[1], output=sys.argv[2])\n"
        "except AvdataError as error: print(type(error).__name__, error.message, '|', error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, manifest, tiny.root],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.startswith("DiskError ")
    assert "would grow beyond the allowed file size" in done.stdout
    assert "finished files are kept" in done.stdout
    assert tiny.tree().keys() <= {f"{path}.part" for path in tiny.files}
    assert len(tiny.server.requests) < 12 + 1
    tiny.download()
    assert tiny.tree() == tiny.files


def test_download_stops_when_the_disk_fills_up(tiny, monkeypatch):
    room = iter([10**12])
    monkeypatch.setattr("avdata.sources.download_run.free_bytes", lambda folder: next(room, 1000))
    monkeypatch.setattr("avdata.sources.download_run._DISK_CHECK_INTERVAL_S", 0.0)
    with pytest.raises(DiskError, match="nearly full"):
        tiny.download(connections=1, bandwidth=20_000)


def test_http_client_does_not_send_tokens_to_a_redirects_host(serve):
    from avdata.sources.http import HttpClient

    storage = serve({"f": b"1"})
    front = serve()
    front.pages["/f"] = lambda handler: handler.reply(302, b"", {"Location": storage.url + "/f"})
    net = HttpClient(1)
    with net.open(front.url + "/f", {"Authorization": "Bearer secret"}) as response:
        assert response.read() == b"1"
    assert front.requests[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in storage.requests[0].headers


class Unpinned:
    """One file whose checksum nobody knows."""

    def __init__(self, tiny, content):
        self.tiny, self.content = tiny, content
        tiny.server.files = {"/f.bin": content}
        tiny.manifest = make_manifest([Source(name="it", urls=(tiny.server.url + "/f.bin",))])

    def interrupt(self, count):
        self.tiny.server.faults["/f.bin"] += [drop_after(count), reply_status(404)]
        with pytest.raises(SourceError):
            self.tiny.download()
        assert (self.tiny.root / "f.bin.part").stat().st_size == count
        self.tiny.server.requests.clear()


@pytest.fixture
def unpinned(tiny):
    return Unpinned(tiny, bytes(range(256)) * 400)


def test_fetcher_resumes_a_file_without_checksum_if_its_etag_matches(unpinned):
    unpinned.interrupt(30_000)
    report = unpinned.tiny.download()
    assert unpinned.tiny.tree() == {"f.bin": unpinned.content}
    assert unpinned.tiny.server.range_starts("/f.bin") == [30_000]
    assert report.checksums == {"it": "sha256:" + hashlib.sha256(unpinned.content).hexdigest()}


def test_fetcher_restarts_a_changed_file_without_checksum(unpinned):
    unpinned.interrupt(30_000)
    changed = unpinned.content[::-1]
    unpinned.tiny.server.files["/f.bin"] = changed
    unpinned.tiny.download()
    assert unpinned.tiny.tree() == {"f.bin": changed}
    (asked,) = unpinned.tiny.server.requests
    assert asked.headers["If-Range"] == f'"{hashlib.md5(unpinned.content).hexdigest()}"'


def test_fetcher_does_not_join_two_files_if_the_server_ignores_if_range(unpinned):
    unpinned.interrupt(30_000)
    changed = unpinned.content[::-1]
    unpinned.tiny.server.files["/f.bin"] = changed

    def ignorant(handler, content):
        handler.headers.replace_header("If-Range", f'"{hashlib.md5(content).hexdigest()}"')
        handler.serve(content)
        return True

    unpinned.tiny.server.faults["/f.bin"].append(ignorant)
    unpinned.tiny.download()
    assert unpinned.tiny.tree() == {"f.bin": changed}


def test_fetcher_restarts_a_partial_file_of_unknown_version(unpinned):
    unpinned.interrupt(30_000)
    (unpinned.tiny.root / "f.bin.part.json").unlink()
    unpinned.tiny.download()
    assert unpinned.tiny.server.range_starts("/f.bin") == [0]
    assert unpinned.tiny.tree() == {"f.bin": unpinned.content}


def test_download_leaves_only_the_files_log_and_lock(tiny):
    for path in tiny.files:
        tiny.server.faults["/" + path] += [
            drop_after(500),
            reply_status(503),
            corrupt_byte(),
        ]
    tiny.download()
    assert tiny.tree() == tiny.files
    assert sorted(path.name for path in (tiny.root / ".avdata").iterdir()) == ["attempts.jsonl", "lock"]
