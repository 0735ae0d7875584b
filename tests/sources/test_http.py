"""HTTP client: redirects, TLS, proxies and unreachable servers."""

from __future__ import annotations

import socket
import ssl

import pytest
import trustme
from support.tiny_dataset import SINGLE_FILE, expect_failure, make_manifest

from avdata.manifest import Source
from avdata.sources.http import HttpClient


def test_http_client_follows_a_redirect(single_file, serve):
    other = serve({"elsewhere": single_file.files[SINGLE_FILE]})
    single_file.server.pages["/" + SINGLE_FILE] = lambda handler: handler.reply(
        302, b"", {"Location": other.url + "/elsewhere"}
    )
    single_file.download()
    assert single_file.tree() == single_file.files


def test_http_client_rejects_a_redirect_loop(single_file):
    single_file.server.pages["/" + SINGLE_FILE] = lambda handler: handler.reply(302, b"", {"Location": "/b"})
    single_file.server.pages["/b"] = lambda handler: handler.reply(302, b"", {"Location": "/" + SINGLE_FILE})
    expect_failure(single_file, "redirect loop")


def test_http_client_limits_the_number_of_redirects(single_file):
    for number in range(30):
        following = {"Location": f"/{number + 1}"}
        single_file.server.pages[f"/{number}"] = lambda handler, following=following: handler.reply(
            302, b"", following
        )
    single_file.server.pages["/" + SINGLE_FILE] = single_file.server.pages["/0"]
    expect_failure(single_file, "more than 10 redirects")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_http_client_rejects_redirects_to_other_schemes(single_file, target):
    single_file.server.pages["/" + SINGLE_FILE] = lambda handler: handler.reply(
        302, b"", {"Location": target}
    )
    expect_failure(single_file, "unsupported redirect")


def test_http_client_names_an_unreachable_server(single_file):
    # A bound port without a listener: no other process can get it in the meantime.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        source = Source(name="media", urls=(f"http://{address}/{{path}}",))
        single_file.manifest = make_manifest([source], single_file.files)
        expect_failure(single_file, f"no connection to {address}")


def test_http_client_rejects_an_untrusted_certificate(single_file, serve):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = serve(single_file.files, tls=context)
    single_file.manifest = make_manifest(
        [Source(name="media", urls=(server.url + "/{path}",))], single_file.files
    )
    error = expect_failure(single_file, "no TLS connection")
    assert "SSL_CERT_FILE" in error.hint
    assert len(single_file.log()) == 1


def test_http_client_reads_a_certificate_authority_from_the_environment(
    single_file, serve, tmp_path, monkeypatch
):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = serve(single_file.files, tls=context)
    single_file.manifest = make_manifest(
        [Source(name="media", urls=(server.url + "/{path}",))], single_file.files
    )
    single_file.download()
    assert single_file.tree() == single_file.files


def test_http_client_uses_the_proxy_of_the_environment(single_file, serve, monkeypatch):
    proxy = serve()
    proxy.files[f"http://data.invalid/{SINGLE_FILE}"] = single_file.files[SINGLE_FILE]
    proxy.pages["/" + SINGLE_FILE] = lambda handler: handler.serve(single_file.files[SINGLE_FILE])
    monkeypatch.setenv("http_proxy", proxy.url)
    single_file.manifest = make_manifest(
        [Source(name="media", urls=("http://data.invalid/{path}",))], single_file.files
    )
    single_file.download()
    assert single_file.tree() == single_file.files
    assert proxy.requests[0].headers["Host"] == "data.invalid"


def test_http_client_does_not_send_tokens_to_a_redirects_host(serve):
    storage = serve({"f": b"1"})
    front = serve()
    front.pages["/f"] = lambda handler: handler.reply(302, b"", {"Location": storage.url + "/f"})
    net = HttpClient(1)
    with net.open(front.url + "/f", {"Authorization": "Bearer secret"}) as response:
        assert response.read() == b"1"
    assert front.requests[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in storage.requests[0].headers
