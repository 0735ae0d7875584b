"""HTTP client: redirects, TLS, proxies and unreachable servers."""

from __future__ import annotations

import base64
import gzip
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from support.http_server import reply_status, stall_after
from support.tiny_dataset import SINGLE_FILE, expect_failure, make_manifest

from avdata.errors import UsageError
from avdata.manifest import Source
from avdata.sources.http import HttpClient
from avdata.sources.types import ResolvedUrl, TransferError
from avdata.storage.network import CERTIFICATE_VARIABLES


def fetch(url, headers=None):
    with HttpClient(1).open(url, headers or {}) as response:
        return response.read()


def redirect(target, status=302):
    return lambda handler: handler.reply(status, b"", {"Location": target})


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def tls(tmp_path):
    """A server's TLS context, and the file of its certificate authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return context, str(tmp_path / "ca.pem")


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


def test_http_client_names_an_unreachable_server(single_file, clock):
    # A bound port without a listener: no other process can get it in the meantime.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        source = Source(name="media", urls=(f"http://{address}/{{path}}",))
        single_file.manifest = make_manifest([source], single_file.files)
        expect_failure(single_file, f"no connection to {address}")


def test_http_client_rejects_an_untrusted_certificate(single_file, serve, tls):
    server = serve(single_file.files, tls=tls[0])
    single_file.manifest = make_manifest(
        [Source(name="media", urls=(server.url + "/{path}",))], single_file.files
    )
    error = expect_failure(single_file, "no TLS connection")
    assert "SSL_CERT_FILE" in error.hint
    assert len(single_file.log()) == 1


@pytest.mark.parametrize("variable", CERTIFICATE_VARIABLES)
def test_http_client_reads_certificate_authorities_from_the_environment(
    serve, tls, monkeypatch, tmp_path, variable
):
    context, authority = tls
    server = serve({"f": b"1"}, tls=context)
    monkeypatch.setenv(variable, authority)
    assert fetch(server.url + "/f") == b"1"
    # OpenSSL itself finds no file by such a name in a folder.
    folder = tmp_path / "authorities"
    folder.mkdir()
    (folder / "README").write_text("no certificate")
    Path(authority).rename(folder / "ours.crt")
    monkeypatch.setenv(variable, str(folder))
    assert fetch(server.url + "/f") == b"1"


@pytest.mark.parametrize("variable", CERTIFICATE_VARIABLES)
def test_download_stops_at_a_wrong_path_of_certificates(single_file, monkeypatch, variable):
    monkeypatch.setenv(variable, "/nowhere/ca.pem")
    source = Source(name="media", urls=("https://127.0.0.1:1/{path}",))
    single_file.manifest = make_manifest([source], single_file.files)
    with pytest.raises(UsageError) as caught:
        single_file.download()
    assert caught.value.message == f"{variable} is not a file or folder of certificates: /nowhere/ca.pem."


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


@pytest.mark.parametrize("bypass", ["127.0.0.0/8", "localhost,127.0.0.1"])
def test_http_client_bypasses_the_proxy_for_hosts_in_no_proxy(serve, monkeypatch, bypass):
    server, proxy = serve({"f": b"1"}), serve()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", bypass)
    assert fetch(server.url + "/f") == b"1"
    assert proxy.requests == []


def test_http_client_bypasses_the_proxy_after_a_redirect_to_a_host_in_no_proxy(serve, monkeypatch):
    server, proxy = serve({"f": b"1"}), serve()
    proxy.pages["/g"] = redirect(server.url + "/f")
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch("http://data.invalid/g") == b"1"
    assert len(proxy.requests) == len(server.requests) == 1


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_http_client_sends_the_proxys_login(serve, monkeypatch, variable):
    proxy = serve()
    proxy.pages["/f"] = lambda handler: handler.reply(200, b"1")
    monkeypatch.setenv(variable, proxy.url.replace("//", "//me:p%40%C3%A4%E2%82%AC@"))
    assert fetch("http://data.invalid/f") == b"1"
    assert proxy.requests[0].headers["Proxy-Authorization"] == basic("me", "p@ä€")


def test_http_client_asks_an_unreachable_proxy_without_its_password(monkeypatch):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://me:hunter2@127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(
            TransferError, match=r"no connection to data\.invalid through the proxy"
        ) as caught:
            fetch("http://data.invalid/f?signature=hunter2")
    assert "hunter2" not in str(caught.value)
    assert "NO_PROXY" in caught.value.hint


def test_http_client_does_not_send_tokens_to_a_redirects_host(serve):
    storage, front = serve({"f": b"1"}), serve()
    front.pages["/f"] = redirect(storage.url + "/f")
    assert fetch(front.url + "/f", {"Authorization": "Bearer hunter2"}) == b"1"
    assert front.requests[0].headers["Authorization"] == "Bearer hunter2"
    assert "Authorization" not in storage.requests[0].headers


def test_http_client_sends_tokens_after_a_redirect_on_the_same_host(serve):
    server = serve({"g": b"1"})
    server.pages["/f"] = redirect("/g")
    assert fetch(server.url + "/f", {"Authorization": "Bearer hunter2"}) == b"1"
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer hunter2"] * 2


def test_http_client_rejects_a_redirect_from_https_to_http(serve, tls, monkeypatch):
    context, authority = tls
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    plain, secure = serve({"f": b"1"}), serve(tls=context)
    secure.pages["/f"] = redirect(plain.url + "/f?signature=hunter2")
    with pytest.raises(
        TransferError, match=r"unsupported redirect from https to http://127\.0\.0\.1"
    ) as caught:
        fetch(secure.url + "/f")
    assert "hunter2" not in str(caught.value)
    assert plain.requests == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "ftp://me:hunter2@127.0.0.1/x?sig=a'b)hunter2#hunter2",
            r"redirect from http to ftp://127\.0\.0\.1/x$",
        ),
        ("FTP://127.0.0.1/x?hunter2", "unsupported redirect"),
        ("https+x://127.0.0.1/x#hunter2", "unsupported redirect"),
        ("javascript:x?hunter2", "unsupported redirect"),
        ("/f?sig=')hunter2", "redirect loop at http://"),
        ("HTTP://127.0.0.1:99999/x?hunter2", "Port out of range"),
        ("http://[::1/x?sig=a'hunter2", "IPv6"),
        ("http://me:hunter2@a..b/x?sig=a)hunter2", "invalid"),
        ("http://me:hunter2@/x?sig=a'hunter2", "invalid|no http URL"),
    ],
)
def test_http_client_names_the_target_of_a_redirect_without_secrets(serve, caplog, method, target, message):
    server = serve()
    server.pages["/f"] = redirect(target)
    server.pages["/f?sig=')hunter2"] = redirect(target)
    caplog.set_level("DEBUG")
    locate = {"GET": ResolvedUrl, "HEAD": lambda url: ResolvedUrl(HttpClient(1).head(url, {})[0])}[method]
    with pytest.raises(TransferError, match=message) as caught:
        fetch(locate(server.url + "/f").url)
    assert not caught.value.retryable
    assert "hunter2" not in f"{caught.value} {caught.value.hint} {caught.value.cause} {caplog.text}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_http_client_repeats_a_post_after_a_redirect(serve, status):
    """git-LFS servers redirect requests to a renamed repository."""
    server, bodies = serve(), []

    def post(path, body):
        bodies.append((path, body))
        return (status, {}, {"Location": "/new"}) if path == "/old" else (200, {})

    server.posts = post
    with HttpClient(1).open(server.url + "/old", {}, method="POST", body=b"[1]") as response:
        assert response.read() == b"{}"
    assert bodies == [("/old", [1]), ("/new", [1])]


def test_http_client_sends_the_login_of_netrc(serve, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pass\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve({"f": b"1"})
    fetch(server.url + "/f")
    fetch(server.url + "/f", {"Authorization": "Bearer token"})
    sent = [request.headers["Authorization"] for request in server.requests]
    assert sent == [basic("me", "pass"), "Bearer token"]


def test_http_client_prefers_the_login_in_a_url(serve, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pass\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve({"f": b"1"})
    logins = ["you:p%40%E2%82%AC", "token"]
    for login in logins:
        fetch(server.url.replace("//", f"//{login}@") + "/f")
    sent = [request.headers["Authorization"] for request in server.requests]
    assert sent == [basic("you", "p@€"), basic("token", "")]


def test_http_client_warns_of_a_broken_netrc(serve, tmp_path, monkeypatch, caplog):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me pass word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetch(serve({"f": b"1"}).url + "/f") == b"1"
    (warning,) = caplog.messages
    assert "Cannot read the logins in netrc" in warning
    assert "line 1" in warning


def test_http_client_stores_no_cookies(serve):
    server = serve({"h": b"1"})
    server.pages["/f"] = lambda handler: handler.reply(200, b"1", {"Set-Cookie": "a=b; Path=/"})
    server.pages["/g"] = redirect("/h")
    net = HttpClient(1)
    for path in "ffg":
        with net.open(f"{server.url}/{path}", {}) as response:
            response.read()
    assert [request.path for request in server.requests if "Cookie" in request.headers] == []


def test_http_client_returns_the_bytes_as_sent(serve):
    server = serve()
    packed = gzip.compress(b"content")
    server.pages["/f"] = lambda handler: handler.reply(200, packed, {"Content-Encoding": "gzip"})
    assert fetch(server.url + "/f") == packed
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_http_client_reuses_connections(serve):
    ports = set()
    server = serve()

    def page(handler):
        ports.add(handler.client_address[1])
        handler.reply(200, b"1")

    server.pages["/f"] = page
    net = HttpClient(1)
    for _ in range(3):
        with net.open(server.url + "/f", {}) as response:
            response.read()
    assert len(ports) == 1


def test_http_client_abort_wakes_up_a_blocked_read(serve, monkeypatch):
    monkeypatch.setattr("avdata.sources.http.READ_TIMEOUT_S", 600)
    server = serve({"f": bytes(1000)})
    server.always = stall_after(10)
    net, started = HttpClient(1), threading.Event()

    def read():
        with net.open(server.url + "/f", {}) as response:
            assert response.read1(10) == bytes(10)
            started.set()
            response.read()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert started.wait(60)
        net.abort()
        with pytest.raises(TransferError, match=r"connection to 127\.0\.0\.1:.* lost"):
            reading.result(60)
    with pytest.raises(TransferError, match="aborted"), net.open(server.url + "/f", {}):
        pass


def test_http_client_redacts_the_warnings_of_urllib3(serve, caplog):
    server = serve()
    server.pages["/f"] = lambda handler: handler.reply(200, b"", {"no colon\r\nBad": "1"})
    fetch(server.url + "/f?signature=hunter2")
    assert "Failed to parse headers" in caplog.text
    assert "hunter2" not in caplog.text


def test_download_hides_the_secrets_of_urls(single_file):
    url = single_file.server.url.replace("//", "//me:hunter2@") + "/{path}?signature=hunter2"
    single_file.manifest = make_manifest([Source(name="media", urls=(url,))], single_file.files)
    single_file.server.always = reply_status(404)
    error = expect_failure(single_file, "HTTP 404")
    (line,) = single_file.log()
    assert line["url"] == f"{single_file.server.url}/{SINGLE_FILE}"
    assert "hunter2" not in str(error) + str(line)
    assert single_file.server.requests[0].headers["Authorization"] == basic("me", "hunter2")


def test_download_imports_requests_only_for_a_transfer_and_no_numpy():
    code = """if True:
        import sys
        import avdata.sources.download
        print({"requests", "numpy", "yaml"} & set(sys.modules))
        sys.modules["requests"] = None
        try:
            import avdata.sources.http
        except ImportError as error:
            print(error.name)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "requests"]


def test_download_requests_an_expired_redirect_anew_once(single_file, serve):
    """Signed links of Zenodo and S3 are reached by a redirect."""
    storage = serve({"signed": single_file.files[SINGLE_FILE]})
    storage.faults["/signed"].append(reply_status(403))
    single_file.server.pages["/" + SINGLE_FILE] = redirect(storage.url + "/signed?expires=1")
    single_file.download()
    assert single_file.tree() == single_file.files
    assert len(single_file.server.requests) == len(storage.requests) == 2


def test_http_client_names_a_certificate_that_is_not_valid_yet(serve, tmp_path, monkeypatch):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    later = datetime.now(UTC) + timedelta(days=300)
    authority.issue_cert("127.0.0.1", not_before=later).configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(TransferError, match="not valid yet: the clock of this machine") as caught:
        fetch(serve({"f": b"1"}, tls=context).url + "/f")
    assert not caught.value.retryable


def test_http_client_names_a_host_that_cannot_be_resolved():
    with pytest.raises(TransferError, match=r"^cannot resolve data\.invalid$"):
        fetch("http://data.invalid/f")
