"""Downloads from nginx, through tinyproxy and microsocks: real servers of other projects.

`make servers` installs them. A test is skipped only if its program cannot be had.
"""

from __future__ import annotations

import select
import subprocess
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import trustme
from support.servers import microsocks, nginx, tinyproxy
from support.tiny_dataset import SINGLE_FILE, make_files, make_manifest, make_recipe, read_tree

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.sources.download import download


class Site:
    """A folder of files that nginx serves, and the dataset that is downloaded from there."""

    def __init__(self, folder, files):
        self.folder = folder
        self.files = files
        self.root = folder / "download"
        for path, content in files.items():
            file = folder / "site" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def serve(self, http="", server="", **options):
        return nginx(self.folder / "nginx", self.folder / "site", http=http, server=server, **options)

    def download(self, *urls, **options):
        manifest = make_manifest([Source(name="media", urls=urls)], self.files)
        return download(make_recipe(), manifest=manifest, output=self.root, **options)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, make_files(24))


@pytest.fixture
def large_site(tmp_path):
    return Site(tmp_path, {SINGLE_FILE: bytes(range(256)) * 12_000})


@pytest.mark.parametrize("status", [429, 503])
def test_download_takes_all_files_from_a_server_that_limits_its_rate(site, status):
    """nginx refuses requests above the rate without `Retry-After`."""
    http = "limit_req_zone $server_port zone=rate:1m rate=50r/s;"
    with site.serve(http, f"limit_req zone=rate; limit_req_status {status};") as server:
        site.download(server.url + "/{path}")
        assert status in server.statuses()
    assert read_tree(site.root) == site.files


def test_download_takes_all_files_from_a_server_that_limits_connections(site):
    http = "limit_conn_zone $server_port zone=connections:1m;"
    limits = "limit_conn connections 2; limit_rate 200k; sendfile off;"
    with site.serve(http, limits) as server:
        site.download(server.url + "/{path}")
    assert read_tree(site.root) == site.files


def test_download_ignores_the_servers_compression(site):
    gzip = "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;"
    with site.serve(server=gzip) as server:
        url = f"{server.url}/{next(iter(site.files))}"
        curl = ["curl", "-sI", "-H", "Accept-Encoding: gzip", url]
        assert "gzip" in subprocess.run(curl, capture_output=True, text=True, check=True).stdout
        site.download(server.url + "/{path}")
    assert read_tree(site.root) == site.files


@pytest.mark.parametrize("target", ["/{status}/$1", "$scheme://$http_host/{status}/$1"])
def test_download_follows_every_redirect(site, target):
    statuses = (301, 302, 303, 307, 308)
    rules = "absolute_redirect off;"
    for first, following in zip(statuses, (*statuses[1:], None), strict=True):
        step = f"return {first} {target.format(status=following)}" if following else "rewrite ^/308/(.*)$ /$1"
        rules += f" location ~ ^/{first}/(.*)$ {{ {step}; }}"
    with site.serve(server=rules) as server:
        site.download(server.url + "/301/{path}")
        assert set(server.statuses()) == {301, 302, 303, 307, 200}
    assert read_tree(site.root) == site.files


def _restart_in_the_middle(site, server):
    """Download, and restart the server when a part is on disk; nginx logs no request that it cuts."""
    part = site.root / f"{SINGLE_FILE}.part"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(site.download, server.url + "/{path}")
        while not (part.exists() and part.stat().st_size):
            assert not running.done()
            select.select([], [], [], 0.005)
        server.stop()
        server.start()
        running.result(120)
    assert read_tree(site.root) == site.files


@pytest.fixture
def patient(monkeypatch):
    """Longer waits between attempts than the start of a server takes."""
    monkeypatch.setattr("avdata.sources.fetcher.backoff", lambda attempt: 0.3)


@pytest.mark.usefixtures("patient")
def test_download_resumes_after_a_restart_of_the_server(large_site):
    with large_site.serve(server="limit_rate 4m;") as server:
        _restart_in_the_middle(large_site, server)
        assert set(server.statuses()) == {206}


@pytest.mark.usefixtures("patient")
def test_download_starts_again_on_a_server_without_ranges(large_site):
    with large_site.serve(server="limit_rate 4m; max_ranges 0;") as server:
        _restart_in_the_middle(large_site, server)
        assert set(server.statuses()) == {200}


@pytest.fixture
def secure(site, monkeypatch):
    """nginx with a certificate of an authority that only `SSL_CERT_FILE` names."""
    authority = trustme.CA()
    files = {name: str(site.folder / f"{name}.pem") for name in ("authority", "certificate", "key")}
    authority.cert_pem.write_to_path(files["authority"])
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(files["key"])
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    keys = f"ssl_certificate {files['certificate']}; ssl_certificate_key {files['key']};"
    monkeypatch.setenv("SSL_CERT_FILE", files["authority"])
    with site.serve(server=keys, tls=True) as server:
        yield server


def test_download_uses_a_private_certificate_authority(site, secure, monkeypatch):
    site.download(secure.url + "/{path}")
    assert read_tree(site.root) == site.files
    monkeypatch.delenv("SSL_CERT_FILE")
    site.root = site.folder / "second"
    with pytest.raises(SourceError, match="No TLS connection") as caught:
        site.download(secure.url + "/{path}", limit=1)
    assert "SSL_CERT_FILE" in caught.value.hint


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_download_passes_a_proxy_with_a_password(site, secure, tmp_path, monkeypatch, variable):
    with tinyproxy(tmp_path, "pass.word") as address:
        monkeypatch.setenv(variable, f"http://me:pass%2Eword@{address}")
        site.download(secure.url + "/{path}")
        assert read_tree(site.root) == site.files
        assert urlsplit(secure.url).netloc in (tmp_path / "tinyproxy.log").read_text()
        site.root = tmp_path / "second"
        monkeypatch.setenv(variable, f"http://me:wrong@{address}")
        with pytest.raises(SourceError, match=r"through the proxy: .* 40[17] ") as caught:
            site.download(secure.url + "/{path}", limit=1)
    assert "wrong" not in str(caught.value)
    assert variable in caught.value.hint


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_download_passes_a_socks_proxy_with_a_password(site, secure, monkeypatch, scheme):
    with microsocks("p@ss:w/rd") as address:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:p%40ss%3Aw%2Frd@{address}")
        site.download(secure.url + "/{path}", limit=4)
        assert len(read_tree(site.root)) == 8
        site.root = site.folder / "second"
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:wrong@{address}")
        with pytest.raises(SourceError, match=r"through the proxy: .*authentication failed") as caught:
            site.download(secure.url + "/{path}", limit=1)
    assert "wrong" not in str(caught.value)
