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

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.storage.atomic import DiskError

PATH = "wav/c0001.wav"


@pytest.fixture
def one(tiny, build):
    """A dataset of a single file of 200 kB."""
    content = bytes(range(256)) * 800
    tiny.files = {PATH: content}
    tiny.world.files = {"/" + PATH: content}
    tiny.manifest = build["manifest"]([Source(name="media", urls=(tiny.world.url + "/{path}",))], tiny.files)
    return tiny


def expect_failure(one, match):
    with pytest.raises(SourceError, match=match) as caught:
        one.download()
    assert not (one.root / PATH).exists()
    return caught.value


def test_a_dropped_connection_goes_on_from_the_byte(one, faults):
    one.world.faults["/" + PATH] += [faults["drop_after"](70_000), faults["drop_after"](80_000)]
    one.download()
    assert one.tree() == one.files
    assert one.world.starts("/" + PATH) == [0, 70_000, 150_000]
    assert one.world.sent() == 204_800


def test_a_long_file_on_a_weak_line_is_finished_however_often_it_is_cut(tiny, build, faults, monkeypatch):
    monkeypatch.setattr("avdata.sources.fetcher._PROGRESS", 10_000)
    content = bytes(range(250)) * 1000
    tiny.files, tiny.world.files = {PATH: content}, {"/" + PATH: content}
    tiny.manifest = build["manifest"]([Source(name="media", urls=(tiny.world.url + "/{path}",))], tiny.files)

    def cut(handler, content):
        handler.serve(content, cut=12_000)
        return True

    tiny.world.always = cut
    tiny.download()
    assert tiny.tree() == tiny.files
    assert len(tiny.world.asked) == 21


def test_a_stalled_connection_is_left_and_goes_on_from_the_byte(one, faults, monkeypatch):
    # Long enough for a busy machine to answer whatever else is asked of it.
    monkeypatch.setattr("avdata.sources.http.READ_TIMEOUT_S", 3.0)
    one.world.faults["/" + PATH].append(faults["stall_after"](50_000))
    one.download()
    assert one.tree() == one.files
    assert one.world.starts("/" + PATH) == [0, 50_000]
    assert "did not answer within 3 s" in one.log()[0]["error"]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_trouble_is_waited_out(one, faults, code):
    one.world.faults["/" + PATH] += [faults["status"](code)] * 2
    one.download()
    assert one.tree() == one.files
    assert [line["status"] for line in one.log()] == [code, code]


def test_retry_after_in_seconds_is_honoured(one, faults):
    one.world.faults["/" + PATH].append(faults["status"](429, {"Retry-After": "1"}))
    started = time.monotonic()
    one.download()
    assert time.monotonic() - started >= 1.0
    assert one.tree() == one.files


def test_retry_after_as_a_date_is_honoured(one):
    asked_for = []

    def busy(handler, content):
        asked_for.append(int(time.time()) + 2)
        handler.reply(503, b"trouble", {"Retry-After": formatdate(asked_for[0], usegmt=True)})
        return True

    one.world.faults["/" + PATH].append(busy)
    one.download()
    assert one.tree() == one.files
    # A pause may end a little early, and clocks are set.
    assert time.time() > asked_for[0] - 0.5


def test_retry_after_holds_all_connections_to_the_host_back(tiny, faults):
    tiny.world.faults["/wav/c0000.wav"].append(faults["status"](429, {"Retry-After": "1"}))
    assert tiny.download(connections=1).fetched == 12
    assert tiny.world.starts("/wav/c0000.wav") == [0, 0]


def test_a_server_that_asks_for_an_hour_is_not_waited_for(one, faults):
    one.world.always = faults["status"](429, {"Retry-After": "3600"})
    error = expect_failure(one, "come back in 3,600 s")
    assert "again later" in error.hint
    assert len(one.world.asked) == 1


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_not_repeated(one, faults, code):
    one.world.always = faults["status"](code)
    expect_failure(one, f"HTTP {code}")
    assert len(one.world.asked) == 1


def test_a_server_in_trouble_for_good_is_given_up_after_some_attempts(one, faults):
    one.world.always = faults["status"](500)
    expect_failure(one, "HTTP 500")
    assert len(one.world.asked) == 6


def test_a_wrong_length_is_noticed_before_the_body(one, faults):
    one.world.always = faults["instead"](bytes(300_000))
    expect_failure(one, "has 300,000 bytes, and 204,800 were expected")
    assert len(one.world.asked) == 1


def test_a_flipped_byte_is_noticed_and_the_file_fetched_again(one, faults):
    one.world.faults["/" + PATH].append(faults["corrupt"]())
    one.download()
    assert one.tree() == one.files


def test_a_file_that_is_always_wrong_is_refused(one, faults):
    one.world.always = faults["corrupt"]()
    expect_failure(one, "was expected")
    assert not (one.root / (PATH + ".part")).exists()
    assert len(one.world.asked) == 3


def test_a_wrong_file_is_fetched_from_the_mirror(one, serve, faults, build):
    mirror = serve(one.files)
    urls = (one.world.url + "/{path}", mirror.url + "/{path}")
    one.manifest = build["manifest"]([Source(name="media", urls=urls)], one.files)
    one.world.always = faults["corrupt"]()
    one.download()
    assert one.tree() == one.files


def test_a_part_from_one_mirror_is_finished_by_another(one, serve, faults, build):
    mirror = serve(one.files)
    urls = (one.world.url + "/{path}", mirror.url + "/{path}")
    one.manifest = build["manifest"]([Source(name="media", urls=urls)], one.files)
    one.world.faults["/" + PATH] += [faults["drop_after"](60_000), faults["status"](410)]
    one.download()
    assert one.tree() == one.files
    assert mirror.starts("/" + PATH) == [60_000]


def test_a_server_without_ranges_sends_the_file_again(one, faults):
    one.world.faults["/" + PATH] += [faults["drop_after"](60_000), faults["no_ranges"]]
    one.download()
    assert one.tree() == one.files


def test_a_part_that_is_too_long_starts_again(one):
    (one.root / PATH).parent.mkdir(parents=True)
    (one.root / (PATH + ".part")).write_bytes(bytes(300_000))
    one.download()
    assert one.tree() == one.files
    assert one.world.starts("/" + PATH) == [0]


def test_a_part_with_wrong_bytes_ends_in_the_right_file(one):
    (one.root / PATH).parent.mkdir(parents=True)
    (one.root / (PATH + ".part")).write_bytes(bytes(1000))
    one.download()
    assert one.tree() == one.files
    assert one.world.starts("/" + PATH) == [1000, 0]


def test_a_whole_part_is_proven_and_named_without_asking(one):
    (one.root / PATH).parent.mkdir(parents=True)
    (one.root / (PATH + ".part")).write_bytes(one.files[PATH])
    one.download()
    assert one.tree() == one.files
    assert one.world.asked == []


def test_a_redirect_is_followed(one, serve):
    other = serve({"elsewhere": one.files[PATH]})
    one.world.pages["/" + PATH] = lambda handler: handler.reply(
        302, b"", {"Location": other.url + "/elsewhere"}
    )
    one.download()
    assert one.tree() == one.files


def test_a_redirect_in_a_circle_is_refused(one):
    one.world.pages["/" + PATH] = lambda handler: handler.reply(302, b"", {"Location": "/b"})
    one.world.pages["/b"] = lambda handler: handler.reply(302, b"", {"Location": "/" + PATH})
    expect_failure(one, "redirects in a circle")


def test_a_redirect_without_end_is_refused(one):
    for number in range(30):
        following = {"Location": f"/{number + 1}"}
        one.world.pages[f"/{number}"] = lambda handler, following=following: handler.reply(
            302, b"", following
        )
    one.world.pages["/" + PATH] = one.world.pages["/0"]
    expect_failure(one, "more than 10 redirects")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_kind_of_place_is_refused(one, target):
    one.world.pages["/" + PATH] = lambda handler: handler.reply(302, b"", {"Location": target})
    expect_failure(one, "not followed")


def test_a_web_page_is_not_kept_as_media(one, faults):
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    one.world.always = faults["instead"](page, "text/html")
    expect_failure(one, "a web page instead of the file")


def test_pointer_text_is_not_kept_as_media(one, faults):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 204800\n"
    one.world.always = faults["instead"](pointer)
    expect_failure(one, "git-LFS pointer text")


def test_a_page_of_the_files_length_is_not_kept_either(one, faults):
    one.world.always = faults["instead"](b"<html>".ljust(204_800))
    expect_failure(one, "a web page instead")


def test_a_server_that_is_not_there_is_named(one, build):
    # A port that is held and not listened on: nobody else can be given it meanwhile.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        source = Source(name="media", urls=(f"http://{address}/{{path}}",))
        one.manifest = build["manifest"]([source], one.files)
        expect_failure(one, f"no connection to {address}")


def test_a_certificate_nobody_vouches_for_is_refused(one, serve, build):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    world = serve(one.files, tls=context)
    one.manifest = build["manifest"]([Source(name="media", urls=(world.url + "/{path}",))], one.files)
    error = expect_failure(one, "no secure connection")
    assert "SSL_CERT_FILE" in error.hint
    assert len(one.log()) == 1


def test_a_certificate_authority_of_ones_own_is_taken_from_the_environment(
    one, serve, build, tmp_path, monkeypatch
):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    world = serve(one.files, tls=context)
    one.manifest = build["manifest"]([Source(name="media", urls=(world.url + "/{path}",))], one.files)
    one.download()
    assert one.tree() == one.files


def test_a_proxy_from_the_environment_is_used(one, serve, build, monkeypatch):
    proxy = serve()
    proxy.files[f"http://data.invalid/{PATH}"] = one.files[PATH]
    proxy.pages["/" + PATH] = lambda handler: handler.serve(one.files[PATH])
    monkeypatch.setenv("http_proxy", proxy.url)
    one.manifest = build["manifest"]([Source(name="media", urls=("http://data.invalid/{path}",))], one.files)
    one.download()
    assert one.tree() == one.files
    assert proxy.asked[0].headers["Host"] == "data.invalid"


def test_a_full_disk_ends_the_run_at_once_and_says_so(tiny, tmp_path):
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
    assert len(tiny.world.asked) < 12 + 1
    tiny.download()
    assert tiny.tree() == tiny.files


def test_a_disk_that_fills_up_meanwhile_stops_the_run(tiny, monkeypatch):
    room = iter([10**12])
    monkeypatch.setattr(sys.modules["avdata.sources.download"], "free_bytes", lambda folder: next(room, 1000))
    monkeypatch.setattr(sys.modules["avdata.sources.download"], "_DISK_CHECK_INTERVAL_S", 0.0)
    with pytest.raises(DiskError, match="nearly full"):
        tiny.download(connections=1, bandwidth=20_000)


def test_tokens_are_not_sent_to_the_host_of_a_redirect(serve):
    from avdata.sources.http import HttpClient

    storage = serve({"f": b"1"})
    front = serve()
    front.pages["/f"] = lambda handler: handler.reply(302, b"", {"Location": storage.url + "/f"})
    net = HttpClient(1)
    with net.open(front.url + "/f", {"Authorization": "Bearer secret"}) as response:
        assert response.read() == b"1"
    assert front.asked[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in storage.asked[0].headers


class Unpinned:
    """One file whose checksum nobody knows."""

    def __init__(self, tiny, build, content):
        self.tiny, self.content = tiny, content
        tiny.world.files = {"/f.bin": content}
        tiny.manifest = build["manifest"]([Source(name="it", urls=(tiny.world.url + "/f.bin",))])

    def interrupt(self, faults, count):
        self.tiny.world.faults["/f.bin"] += [faults["drop_after"](count), faults["status"](404)]
        with pytest.raises(SourceError):
            self.tiny.download()
        assert (self.tiny.root / "f.bin.part").stat().st_size == count
        self.tiny.world.asked.clear()


@pytest.fixture
def unpinned(tiny, build):
    return Unpinned(tiny, build, bytes(range(256)) * 400)


def test_an_unpinned_file_goes_on_in_the_next_run_when_the_server_vouches_for_it(unpinned, faults):
    unpinned.interrupt(faults, 30_000)
    report = unpinned.tiny.download()
    assert unpinned.tiny.tree() == {"f.bin": unpinned.content}
    assert unpinned.tiny.world.starts("/f.bin") == [30_000]
    assert report.checksums == {"it": "sha256:" + hashlib.sha256(unpinned.content).hexdigest()}


def test_an_unpinned_file_that_changed_meanwhile_starts_again(unpinned, faults):
    unpinned.interrupt(faults, 30_000)
    changed = unpinned.content[::-1]
    unpinned.tiny.world.files["/f.bin"] = changed
    unpinned.tiny.download()
    assert unpinned.tiny.tree() == {"f.bin": changed}
    (asked,) = unpinned.tiny.world.asked
    assert asked.headers["If-Range"] == f'"{hashlib.md5(unpinned.content).hexdigest()}"'


def test_a_server_that_ignores_if_range_does_not_join_two_files(unpinned, faults):
    unpinned.interrupt(faults, 30_000)
    changed = unpinned.content[::-1]
    unpinned.tiny.world.files["/f.bin"] = changed

    def ignorant(handler, content):
        handler.headers.replace_header("If-Range", f'"{hashlib.md5(content).hexdigest()}"')
        handler.serve(content)
        return True

    unpinned.tiny.world.faults["/f.bin"].append(ignorant)
    unpinned.tiny.download()
    assert unpinned.tiny.tree() == {"f.bin": changed}


def test_an_unpinned_part_of_unknown_origin_starts_again(unpinned, faults):
    unpinned.interrupt(faults, 30_000)
    (unpinned.tiny.root / "f.bin.part.json").unlink()
    unpinned.tiny.download()
    assert unpinned.tiny.world.starts("/f.bin") == [0]
    assert unpinned.tiny.tree() == {"f.bin": unpinned.content}


def test_nothing_but_the_files_is_left_behind(tiny, faults):
    for path in tiny.files:
        tiny.world.faults["/" + path] += [
            faults["drop_after"](500),
            faults["status"](503),
            faults["corrupt"](),
        ]
    tiny.download()
    assert tiny.tree() == tiny.files
    assert sorted(path.name for path in (tiny.root / ".avdata").iterdir()) == ["attempts.jsonl", "lock"]
