"""For every fault of a server or disk: the right file, or a clear error and no file."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
from email.utils import formatdate

import pytest
from support.http_server import corrupt_byte, drop_after, ignore_ranges, reply_body, reply_status, stall_after
from support.tiny_dataset import SINGLE_FILE, expect_failure, make_manifest

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.storage.atomic import DiskError


def test_fetcher_resumes_a_dropped_connection_at_the_byte(single_file):
    single_file.server.faults["/" + SINGLE_FILE] += [drop_after(70_000), drop_after(80_000)]
    single_file.download()
    assert single_file.tree() == single_file.files
    assert single_file.server.range_starts("/" + SINGLE_FILE) == [0, 70_000, 150_000]
    assert single_file.server.bytes_sent() == 204_800


def test_fetcher_completes_a_file_despite_many_dropped_connections(tiny, monkeypatch):
    monkeypatch.setattr("avdata.sources.fetcher._PROGRESS_BYTES", 10_000)
    content = bytes(range(250)) * 1000
    tiny.files, tiny.server.files = {SINGLE_FILE: content}, {"/" + SINGLE_FILE: content}
    tiny.manifest = make_manifest([Source(name="media", urls=(tiny.server.url + "/{path}",))], tiny.files)

    def cut(handler, content):
        handler.serve(content, cut=12_000)
        return True

    tiny.server.always = cut
    tiny.download()
    assert tiny.tree() == tiny.files
    assert len(tiny.server.requests) == 21


def test_fetcher_resumes_a_stalled_connection_at_the_byte(single_file, monkeypatch):
    # Long enough for the other requests on a busy machine.
    monkeypatch.setattr("avdata.sources.http.READ_TIMEOUT_S", 3.0)
    single_file.server.faults["/" + SINGLE_FILE].append(stall_after(50_000))
    single_file.download()
    assert single_file.tree() == single_file.files
    assert single_file.server.range_starts("/" + SINGLE_FILE) == [0, 50_000]
    assert "within 3 s" in single_file.log()[0]["error"]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_fetcher_retries_temporary_errors(single_file, code):
    single_file.server.faults["/" + SINGLE_FILE] += [reply_status(code)] * 2
    single_file.download()
    assert single_file.tree() == single_file.files
    assert [line["status"] for line in single_file.log()] == [code, code]


def test_fetcher_honors_retry_after_in_seconds(single_file, clock):
    single_file.server.faults["/" + SINGLE_FILE].append(reply_status(429, {"Retry-After": "20"}))
    started = clock.now()
    single_file.download()
    assert clock.now() - started >= 20.0
    assert single_file.tree() == single_file.files


def test_fetcher_honors_retry_after_as_a_date(single_file, clock):
    later = formatdate(time.time() + 60, usegmt=True)
    single_file.server.faults["/" + SINGLE_FILE].append(reply_status(503, {"Retry-After": later}))
    started = clock.now()
    single_file.download()
    assert single_file.tree() == single_file.files
    assert 50 < clock.now() - started < 70


def test_fetcher_repeats_a_file_after_retry_after(tiny, clock):
    tiny.server.faults["/wav/c0000.wav"].append(reply_status(429, {"Retry-After": "1"}))
    assert tiny.download(connections=1).fetched == 12
    assert tiny.server.range_starts("/wav/c0000.wav") == [0, 0]


def test_fetcher_does_not_wait_an_hour(single_file):
    single_file.server.always = reply_status(429, {"Retry-After": "3600"})
    error = expect_failure(single_file, "requests a delay of 3,600 s")
    assert "command later" in error.hint
    assert len(single_file.server.requests) == 1


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_fetcher_does_not_retry_permanent_errors(single_file, code):
    single_file.server.always = reply_status(code)
    expect_failure(single_file, f"HTTP {code}")
    assert len(single_file.server.requests) == 1


def test_fetcher_gives_up_a_host_that_is_quiet_for_ten_minutes(single_file, clock):
    single_file.server.always = reply_status(500)
    started = clock.now()
    expect_failure(single_file, "HTTP 500")
    assert 600 <= clock.now() - started < 700
    assert len(single_file.server.requests) < 25


def test_fetcher_gives_up_earlier_on_request(single_file, clock):
    single_file.server.always = reply_status(503)
    started = clock.now()
    with pytest.raises(SourceError, match="HTTP 503"):
        single_file.download(give_up_after=30)
    assert 30 <= clock.now() - started < 60


def test_fetcher_survives_five_minutes_of_errors(single_file, clock):
    recovery = clock.now() + 300
    single_file.server.always = lambda handler, content: (
        clock.now() < recovery and reply_status(502)(handler, content)
    )
    single_file.download()
    assert single_file.tree() == single_file.files


def test_fetcher_gives_up_an_unreachable_host_after_a_minute(single_file, clock):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/{{path}}"
        single_file.manifest = make_manifest([Source(name="media", urls=(url,))], single_file.files)
        started = clock.now()
        expect_failure(single_file, "no connection to")
    assert 60 <= clock.now() - started < 120


def test_fetcher_gives_up_a_file_that_fails_while_others_arrive(tiny, clock):
    tiny.server.faults["/wav/c0001.wav"] += [reply_status(500)] * 50
    started = clock.now()
    with pytest.raises(SourceError, match="HTTP 500"):
        tiny.download(connections=1)
    assert clock.now() - started < 120
    assert len(tiny.tree()) == 11
    assert len(tiny.server.range_starts("/wav/c0001.wav")) == 6


def test_fetcher_rejects_a_wrong_size_before_the_body(single_file):
    single_file.server.always = reply_body(bytes(300_000))
    expect_failure(single_file, "300,000 bytes on the server, expected 204,800")
    assert len(single_file.server.requests) == 1


def test_fetcher_fetches_a_corrupt_file_again(single_file):
    single_file.server.faults["/" + SINGLE_FILE].append(corrupt_byte())
    single_file.download()
    assert single_file.tree() == single_file.files


def test_fetcher_rejects_a_file_with_a_wrong_checksum(single_file):
    single_file.server.always = corrupt_byte()
    expect_failure(single_file, "checksum mismatch")
    assert not (single_file.root / (SINGLE_FILE + ".part")).exists()
    assert len(single_file.server.requests) == 3


def test_fetcher_replaces_a_corrupt_file_from_a_mirror(single_file, serve):
    mirror = serve(single_file.files)
    urls = (single_file.server.url + "/{path}", mirror.url + "/{path}")
    single_file.manifest = make_manifest([Source(name="media", urls=urls)], single_file.files)
    single_file.server.always = corrupt_byte()
    single_file.download()
    assert single_file.tree() == single_file.files


def test_fetcher_resumes_a_partial_file_from_another_mirror(single_file, serve):
    mirror = serve(single_file.files)
    urls = (single_file.server.url + "/{path}", mirror.url + "/{path}")
    single_file.manifest = make_manifest([Source(name="media", urls=urls)], single_file.files)
    single_file.server.faults["/" + SINGLE_FILE] += [drop_after(60_000), reply_status(410)]
    single_file.download()
    assert single_file.tree() == single_file.files
    assert mirror.range_starts("/" + SINGLE_FILE) == [60_000]


def test_fetcher_restarts_if_the_server_ignores_ranges(single_file):
    single_file.server.faults["/" + SINGLE_FILE] += [drop_after(60_000), ignore_ranges]
    single_file.download()
    assert single_file.tree() == single_file.files


def test_fetcher_restarts_a_partial_file_that_is_too_long(single_file):
    (single_file.root / SINGLE_FILE).parent.mkdir(parents=True)
    (single_file.root / (SINGLE_FILE + ".part")).write_bytes(bytes(300_000))
    single_file.download()
    assert single_file.tree() == single_file.files
    assert single_file.server.range_starts("/" + SINGLE_FILE) == [0]


def test_fetcher_restarts_a_corrupt_partial_file(single_file):
    (single_file.root / SINGLE_FILE).parent.mkdir(parents=True)
    (single_file.root / (SINGLE_FILE + ".part")).write_bytes(bytes(1000))
    single_file.download()
    assert single_file.tree() == single_file.files
    assert single_file.server.range_starts("/" + SINGLE_FILE) == [1000, 0]


def test_fetcher_verifies_a_complete_partial_file_without_a_request(single_file):
    (single_file.root / SINGLE_FILE).parent.mkdir(parents=True)
    (single_file.root / (SINGLE_FILE + ".part")).write_bytes(single_file.files[SINGLE_FILE])
    single_file.download()
    assert single_file.tree() == single_file.files
    assert single_file.server.requests == []


def test_fetcher_rejects_a_web_page(single_file):
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    single_file.server.always = reply_body(page, "text/html")
    expect_failure(single_file, "a web page instead of the file")


def test_fetcher_rejects_a_git_lfs_pointer(single_file):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 204800\n"
    single_file.server.always = reply_body(pointer)
    expect_failure(single_file, "a git-LFS pointer instead")


def test_fetcher_rejects_a_web_page_of_the_expected_size(single_file):
    single_file.server.always = reply_body(b"<html>".ljust(204_800))
    expect_failure(single_file, "a web page instead")


def test_download_stops_at_once_on_a_full_disk(tiny, tmp_path):
    """A limit on the file size stands for a full disk."""
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
    assert "would exceed the size limit" in done.stdout
    assert "ulimit -f" in done.stdout
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


class Unpinned:
    """A dataset of one file without a known checksum."""

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
