"""Outages, mirrors and rate limits of hosts, in simulated time."""

from __future__ import annotations

import threading

import pytest
from support.http_server import reply_status
from support.tiny_dataset import make_files, make_manifest, make_recipe, read_tree

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.sources.download import download
from avdata.sources.hosts import HostBusyError, Hosts
from avdata.sources.mirrors import Mirror, choose_mirror


class Mirrors:
    """Servers of the same files, and a download that tries them in order."""

    def __init__(self, serve, folder, count=2, files=12):
        self.files = make_files(files, size=500)
        self.servers = [serve(self.files) for _ in range(count)]
        self.root = folder / "root"

    def download(self, **options):
        source = Source(name="media", urls=tuple(server.url + "/{path}" for server in self.servers))
        manifest = make_manifest([source], self.files)
        return download(make_recipe(), manifest=manifest, output=self.root, **options)

    def counts(self):
        return [len(server.requests) for server in self.servers]


@pytest.fixture
def mirrors(serve, tmp_path):
    return Mirrors(serve, tmp_path)


@pytest.fixture
def hosts(clock):
    return Hosts(4, threading.Event(), clock=clock)


def fail(hosts, server, times=1):
    for _ in range(times):
        hosts.fail(server, "no connection", hosts.clock.now())


def test_hosts_send_one_request_until_the_host_answers(hosts):
    with hosts.request("a") as ticket:
        assert hosts.delay("a") > 0
        with pytest.raises(HostBusyError), hosts.request("a"):
            pass
        hosts.accept(ticket)
        assert hosts.delay("a") <= 0


def test_hosts_set_a_host_aside_after_three_failures_and_try_it_again(hosts, clock):
    fail(hosts, "a", 2)
    assert hosts.delay("a") <= 0
    fail(hosts, "a")
    assert hosts.delay("a") > 10
    clock.time += hosts.delay("a")
    with hosts.request("a") as ticket:
        hosts.accept(ticket)
    assert hosts.delay("a") <= 0
    assert hosts.rank("a") == 0


def test_hosts_ignore_a_failure_of_a_request_older_than_a_success(hosts, clock):
    before = clock.now()
    clock.time += 1
    with hosts.request("a") as ticket:
        hosts.accept(ticket)
    for _ in range(5):
        hosts.fail("a", "connection lost", before)
    assert hosts.rank("a") == 0


def test_hosts_give_up_only_by_failures_not_by_time(hosts, clock):
    with hosts.request("a") as ticket:
        hosts.accept(ticket)
    clock.time += 1
    fail(hosts, "a")
    clock.time += 10_000
    assert not hosts.is_given_up("a")
    fail(hosts, "a")
    assert hosts.is_given_up("a")


def test_hosts_give_up_a_host_that_never_answered_after_a_minute(hosts, clock):
    fail(hosts, "a")
    clock.time += 59
    fail(hosts, "a")
    assert not hosts.is_given_up("a")
    clock.time += 1
    fail(hosts, "a")
    assert hosts.is_given_up("a")


def test_choose_mirror_waits_two_seconds_before_it_asks_the_next(hosts, clock):
    choice = [Mirror(server, server, [server]) for server in "abc"]
    assert choose_mirror(choice, hosts).url == "a"
    started = clock.now()
    with hosts.request("a"):
        assert choose_mirror(choice, hosts).url == "b"
        assert clock.now() - started == pytest.approx(2.0, abs=0.3)
        with hosts.request("b"):
            assert choose_mirror(choice, hosts).url == "c"


def test_choose_mirror_prefers_a_mirror_that_works_to_one_that_failed(hosts):
    choice = [Mirror(server, server, [server]) for server in "ab"]
    fail(hosts, "a")
    with hosts.request("b") as ticket:
        hosts.accept(ticket)
        assert choose_mirror(choice, hosts).url == "b"


def test_choose_mirror_returns_none_if_all_have_failed(hosts):
    assert choose_mirror([Mirror("a", "a", ["a"], is_final=True)], hosts) is None


def test_download_takes_all_files_of_a_server_that_limits_its_rate(mirrors, clock):
    """nginx's `limit_req` at 5 requests/s, in simulated time."""
    accepted = []
    lock = threading.Lock()

    def limited(handler, content):
        with lock:
            if accepted and clock.now() - accepted[-1] < 0.2:
                return reply_status(503)(handler, content)
            accepted.append(clock.now())
        return False

    mirrors.servers = mirrors.servers[:1]
    mirrors.servers[0].always = limited
    assert mirrors.download().fetched == 12
    assert read_tree(mirrors.root) == mirrors.files


@pytest.mark.parametrize(
    "fault", [reply_status(429, {"Retry-After": "20"}), reply_status(429), reply_status(500)]
)
def test_download_does_not_wait_for_a_mirror_while_another_works(mirrors, clock, fault):
    mirrors.servers[0].always = fault
    started = clock.now()
    mirrors.download(connections=1)
    assert read_tree(mirrors.root) == mirrors.files
    assert clock.now() - started < 2


def test_download_proceeds_after_retry_after(mirrors, clock):
    """A server that refuses all requests for 20 s after it served five."""
    served, until = [], 0.0

    def limited(handler, content):
        nonlocal until
        if clock.now() < until:
            return reply_status(429, {"Retry-After": "20"})(handler, content)
        served.append(content)
        if len(served) % 5 == 0:
            until = clock.now() + 20
        return False

    mirrors.servers = mirrors.servers[:1]
    mirrors.servers[0].always = limited
    mirrors.download()
    assert read_tree(mirrors.root) == mirrors.files


def test_download_tells_which_mirror_it_uses_and_why(mirrors, clock, caplog):
    mirrors.servers[0].always = reply_status(500)
    mirrors.download(connections=1)
    first, second = (server.url.removeprefix("http://") for server in mirrors.servers)
    assert f"Downloading from {second} instead of {first}: HTTP 500" in caplog.text
    assert caplog.text.count("Downloading from") == 1


def test_download_tells_that_a_host_is_set_aside(mirrors, clock, caplog):
    mirrors.servers[1].always = mirrors.servers[0].always = reply_status(500)
    with pytest.raises(SourceError):
        mirrors.download()
    host = mirrors.servers[0].url.removeprefix("http://")
    assert f"{host} is set aside and tried again later: HTTP 500" in caplog.text


def test_download_tells_a_refusal_when_it_happens(mirrors, caplog):
    del mirrors.servers[0].files["/wav/c0000.wav"]
    mirrors.servers = mirrors.servers[:1]
    seen = []
    with pytest.raises(SourceError):
        mirrors.download(connections=1, arrived=lambda path: seen.append("Not downloaded" in caplog.text))
    assert seen[-1]
    assert "wav/c0000.wav: HTTP 404" in caplog.text


def test_download_tries_a_failed_mirror_again_later(mirrors, clock):
    """The first mirror fails at the start; later the second one limits its rate."""
    first, second = mirrors.servers
    recovery = clock.now() + 30
    first.always = lambda handler, content: clock.now() < recovery and reply_status(500)(handler, content)
    second.always = lambda handler, content: (
        len(second.requests) > 3 and reply_status(429, {"Retry-After": "300"})(handler, content)
    )
    mirrors.download()
    assert read_tree(mirrors.root) == mirrors.files
    assert len(first.requests) > 8


def test_choose_mirror_tries_all_mirrors_before_a_failed_one_again(hosts, clock):
    """Two mirrors that do not answer within 10 s, and a third."""
    choice = [Mirror(server, server, [server]) for server in "abc"]
    for server in "ab":
        assert choose_mirror(choice, hosts).url == server
        clock.time += 10
        fail(hosts, server)
    assert choose_mirror(choice, hosts).url == "c"
