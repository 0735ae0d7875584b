"""Each URL scheme against a server that imitates the real service, with and without errors."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl

import pytest
import requests
import trustme
from support.http_server import reply_body
from support.tiny_dataset import make_manifest, make_recipe, read_tree
from support.trees import zipped

from avdata.errors import SourceError
from avdata.manifest import Source
from avdata.sources import url_schemes
from avdata.sources.download import download

PAGE = "text/html; charset=utf-8"


class DriveServer:
    """Google Drive: a confirmation page, then the file."""

    def __init__(self, serve, content, monkeypatch):
        self.server = serve({"download": content})
        self.server.pages["/uc"] = self.first
        self.page = (
            "<html><head><title>Google Drive - Virus scan warning</title></head><body>"
            f'<form id="download-form" action="{self.server.url}/download" method="get">'
            '<input type="hidden" name="id" value="FILE"><input type="hidden" name="export" value="download">'
            '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="1-2-3">'
            "</form></body></html>"
        )
        monkeypatch.setattr(url_schemes, "DRIVE_URL", self.server.url + "/uc?export=download&id={id}")

    def first(self, handler):
        handler.reply(200, self.page.encode(), {"Content-Type": PAGE})


@pytest.fixture
def drive(serve, monkeypatch, tmp_path):
    files = {"AVE/-abc.mp4": b"m" * 5000, "AVE/Annotations.txt": b"a&b\n"}
    server = DriveServer(serve, zipped(files), monkeypatch)
    server.files = files
    server.urls = ["gdrive:FILE"]
    server.root = tmp_path / "root"
    server.download = lambda: download(
        make_recipe(clips_from_paths=None),
        manifest=make_manifest([Source(name="videos", urls=tuple(server.urls), unpack="zip")]),
        output=server.root,
    )
    return server


def test_google_drive_confirms_the_virus_scan_page(drive):
    report = drive.download()
    assert read_tree(drive.root) == drive.files
    assert report.unpacked == 2
    assert not (drive.root / ".avdata/videos.zip").exists()


def test_google_drive_serves_gdown_and_the_download_alike(drive, monkeypatch, tmp_path):
    """gdown's own client accepts the server that imitates Drive, so the imitation holds."""
    import gdown

    content = zipped(drive.files)
    header = {
        "Content-Disposition": 'attachment; filename="AVE.zip"', "Content-Type": "application/octet-stream",
    }  # fmt: skip
    drive.server.pages["/download"] = lambda handler: handler.reply(200, content, header)
    request = requests.Session.request

    def redirected(session, method, url, *arguments, **options):
        url = url.replace("https://drive.google.com", drive.server.url)
        return request(session, method, url, *arguments, **options)

    monkeypatch.setattr(requests.Session, "request", redirected)
    gdown.download(id="FILE", output=str(tmp_path / "gdown.zip"), quiet=True, use_cookies=False)
    assert (tmp_path / "gdown.zip").read_bytes() == content
    paths = [request.path for request in drive.server.requests]
    drive.server.requests.clear()
    drive.download()
    assert [request.path for request in drive.server.requests] == paths == ["/uc", "/download"]


@pytest.mark.parametrize(
    "page",
    [
        '<form id="download-form"></form>', '<form id="download-form" action=""></form>',
        '<form id="download-form" action="/a"><input type="hidden"></form>',
        '<form id="download-form" action="file:///etc/passwd"></form>', "<div>" * 10_000, "\n" * 10_000,
        '"downloadUrl":"javascript:alert(1)"', '<form id="download-form" action="http://[::1"></form>',
        '<p class="uc-error-subcaption">\x1b[31m</p>',
    ],
)  # fmt: skip
def test_google_drive_page_without_a_usable_link_is_one_sentence(drive, page):
    drive.page = page
    with pytest.raises(SourceError) as caught:
        drive.download()
    assert "\n" not in caught.value.message
    assert "link" in caught.value.message.lower()


def test_download_does_not_fetch_an_extracted_archive_again(drive):
    drive.download()
    drive.server.requests.clear()
    assert drive.download().present == 1
    assert drive.server.requests == []


def test_download_fetches_an_archive_again_if_a_member_is_missing(drive):
    drive.download()
    (drive.root / "AVE/-abc.mp4").unlink()
    drive.download()
    assert read_tree(drive.root) == drive.files


def test_google_drive_explains_the_quota_page(drive):
    drive.page = (
        "<html><head><title>Google Drive - Quota exceeded</title></head><body>"
        '<p class="uc-error-subcaption">Too many users have downloaded this file recently.</p></body></html>'
    )
    with pytest.raises(SourceError, match="quota of this Google Drive file exceeded") as caught:
        drive.download()
    assert "24 hours" in caught.value.hint
    assert "--source" in caught.value.hint


def test_google_drive_explains_a_missing_file(drive):
    drive.page = "<html><body>Sign in - Google Accounts</body></html>"
    with pytest.raises(SourceError, match="without a download link"):
        drive.download()


def test_google_drive_needs_no_confirmation_for_small_files(drive):
    drive.server.pages["/uc"] = lambda handler: handler.serve(zipped(drive.files))
    drive.download()
    assert read_tree(drive.root) == drive.files


def test_google_drive_quota_error_leads_to_the_next_url(drive, hub):
    drive.page = "<html><title>Quota exceeded</title></html>"
    hub.put("videos.zip", zipped(drive.files))
    drive.urls.append("hf:datasets/someone/mirror/videos.zip")
    drive.download()
    assert read_tree(drive.root) == drive.files


def test_google_drive_web_page_is_not_stored_as_the_archive(drive):
    drive.server.always = reply_body(b"<html>Sorry</html>", PAGE)
    with pytest.raises(SourceError, match="A web page instead of the file"):
        drive.download()
    assert not (drive.root / ".avdata/videos.zip").exists()


class HubServer:
    """The Hub's resolve endpoint: a redirect to storage with checksum and size in its headers."""

    def __init__(self, serve, monkeypatch, tls=None):
        self.storage = serve(tls=tls)
        self.server = serve(tls=tls)
        self.sha256 = None
        monkeypatch.setenv("HF_ENDPOINT", self.server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def put(self, path, content, repo="someone/mirror", revision="main"):
        sha256 = self.sha256 or hashlib.sha256(content).hexdigest()
        self.storage.files["/blob"] = content

        def resolve(handler):
            headers = {
                # Another host name: some client versions ignore the port when they compare hosts.
                "Location": self.storage.url.replace("127.0.0.1", "localhost") + "/blob",
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(content)),
                "X-Repo-Commit": "c" * 40,
            }
            handler.reply(302, b"", headers)

        self.server.pages[f"/datasets/{repo}/resolve/{revision}/{path}"] = resolve


@pytest.fixture
def hub(serve, monkeypatch):
    return HubServer(serve, monkeypatch)


@pytest.fixture
def fetch_one(tmp_path):
    def fetch(url):
        manifest = make_manifest([Source(name="it", urls=(url,), into="it.bin")])
        return download(make_recipe(clips_from_paths=None), manifest=manifest, output=tmp_path / "root")

    fetch.file = tmp_path / "root" / "it.bin"
    return fetch


def test_hugging_face_resolves_a_revision(hub, fetch_one):
    hub.put("data/it.bin", b"b" * 9000, revision="abc123")
    fetch_one("hf:datasets/someone/mirror@abc123/data/it.bin")
    assert fetch_one.file.read_bytes() == b"b" * 9000


def test_hugging_face_token_is_not_sent_to_the_storage(hub, fetch_one):
    hub.put("it.bin", b"b" * 90)
    fetch_one("hf://datasets/someone/mirror/it.bin")
    assert hub.server.requests[0].headers["authorization"] == "Bearer hf_secret"
    assert all(
        "authorization" not in {name.lower() for name in request.headers} for request in hub.storage.requests
    )


def test_hugging_face_checksum_is_verified(hub, fetch_one):
    hub.sha256 = "0" * 64
    hub.put("it.bin", b"b" * 90)
    with pytest.raises(SourceError, match="Checksum mismatch"):
        fetch_one("hf:datasets/someone/mirror/it.bin")
    assert not fetch_one.file.exists()


def test_hugging_face_explains_a_gated_dataset(hub, fetch_one):
    hub.server.pages["/datasets/someone/mirror/resolve/main/it.bin"] = lambda handler: handler.reply(
        403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
    )
    with pytest.raises(SourceError, match="Error of the Hugging Face Hub for someone/mirror") as caught:
        fetch_one("hf:datasets/someone/mirror/it.bin")
    assert "hf auth login" in caught.value.hint


def test_hugging_face_explains_a_refusal_in_the_hubs_words(hub, fetch_one):
    hub.server.pages["/datasets/someone/mirror/resolve/main/it.bin"] = lambda handler: handler.reply(
        403, b"", {"X-Error-Message": "Access to dataset someone/mirror is restricted"}
    )
    with pytest.raises(SourceError, match="HTTP 403 Access to dataset someone/mirror is restricted"):
        fetch_one("hf:datasets/someone/mirror/it.bin")


def test_hugging_face_follows_the_redirect_of_a_renamed_repository(hub, fetch_one):
    hub.put("it.bin", b"b" * 90, repo="someone/new")
    hub.server.pages["/datasets/someone/mirror/resolve/main/it.bin"] = lambda handler: handler.reply(
        307, b"", {"Location": "/datasets/someone/new/resolve/main/it.bin"}
    )
    fetch_one("hf:datasets/someone/mirror/it.bin")
    assert fetch_one.file.read_bytes() == b"b" * 90


def test_hugging_face_retries_after_the_hubs_rate_limit(hub, fetch_one):
    path = "/datasets/someone/mirror/resolve/main/it.bin"
    hub.put("it.bin", b"b" * 90)
    page = hub.server.pages.pop(path)

    def limited(handler):
        hub.server.pages[path] = page
        handler.reply(429, b"", {"Retry-After": "0"})

    hub.server.pages[path] = limited
    fetch_one("hf:datasets/someone/mirror/it.bin")
    assert fetch_one.file.read_bytes() == b"b" * 90


def test_hugging_face_is_not_asked_offline(hub, fetch_one, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        fetch_one("hf:datasets/someone/mirror/it.bin")
    assert hub.server.requests == []


def test_hugging_face_uses_the_certificate_authorities_of_the_environment(
    serve, fetch_one, monkeypatch, tmp_path
):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    HubServer(serve, monkeypatch, context).put("it.bin", b"b" * 90)
    fetch_one("hf:datasets/someone/mirror/it.bin")
    assert fetch_one.file.read_bytes() == b"b" * 90


class KaggleServer:
    """Kaggle's download endpoint: a login, then a redirect to storage."""

    def __init__(self, serve, content, monkeypatch, tmp_path):
        self.storage = serve({"blob.zip": content})
        self.server = serve()
        self.wants = None
        self.server.pages["/api/owner/set"] = self.answer
        monkeypatch.setattr(url_schemes, "KAGGLE_URL", self.server.url + "/api/{handle}")
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
            monkeypatch.delenv(name, raising=False)

    def answer(self, handler):
        if self.wants and handler.headers.get("Authorization") != self.wants:
            handler.reply(403, b"{}")
        else:
            handler.reply(302, b"", {"Location": self.storage.url + "/blob.zip"})


@pytest.fixture
def kaggle(serve, monkeypatch, tmp_path):
    files = {"vision/dog_bark/1-3-0-0.jpg": b"j" * 300, "audio/dog_bark/1-3-0-0.wav": b"w" * 300}
    server = KaggleServer(serve, zipped(files), monkeypatch, tmp_path)
    server.files = files
    server.root = tmp_path / "root"
    server.download = lambda: download(
        make_recipe(clips_from_paths=None),
        manifest=make_manifest([Source(name="set", urls=("kaggle:owner/set",), unpack="zip")]),
        output=server.root,
    )
    return server


def test_kaggle_needs_no_credentials_for_a_public_dataset(kaggle):
    kaggle.download()
    assert read_tree(kaggle.root) == kaggle.files


def test_kaggle_explains_missing_credentials(kaggle):
    kaggle.wants = "Basic something"
    with pytest.raises(SourceError, match="requested with no Kaggle credentials") as caught:
        kaggle.download()
    assert "kaggle.json" in caught.value.hint
    assert "https://www.kaggle.com/datasets/owner/set" in caught.value.hint


def test_kaggle_reads_the_credentials_of_kaggle_json(kaggle, tmp_path):
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle/kaggle.json").write_text(json.dumps({"username": "me", "key": "k"}))
    kaggle.wants = "Basic " + base64.b64encode(b"me:k").decode()
    kaggle.download()
    assert read_tree(kaggle.root) == kaggle.files
    assert "Authorization" not in kaggle.storage.requests[0].headers


@pytest.mark.parametrize(
    "credentials", [{"KAGGLE_API_TOKEN": "KGAT_1"}, {"KAGGLE_USERNAME": "me", "KAGGLE_KEY": "k"}]
)
def test_kaggle_sends_the_login_that_kagglehub_sends(kaggle, monkeypatch, credentials):
    """kagglehub's own client asks a server that imitates Kaggle's, and so do we."""
    from kagglehub.clients import build_kaggle_client
    from kagglesdk import kaggle_env
    from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    asked = kaggle.server
    asked.posts = lambda path, body: (200, {})
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, asked.url)
    request = ApiGetDatasetRequest()
    request.owner_slug, request.dataset_slug = "owner", "set"
    with build_kaggle_client() as client:
        client.datasets.dataset_api_client.get_dataset(request)
    (theirs,) = asked.requests
    asked.requests.clear()
    kaggle.download()
    assert {request.headers["Authorization"] for request in asked.requests} == {
        theirs.headers["Authorization"]
    }


@pytest.mark.parametrize("content", ['{"username": "me",', '{"username": "me"}', "7", "[]"])
def test_kaggle_explains_a_broken_kaggle_json(kaggle, tmp_path, content):
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle/kaggle.json").write_text(content)
    with pytest.raises(SourceError, match="Cannot read the Kaggle credentials") as caught:
        kaggle.download()
    assert "kaggle.json" in str(caught.value)
    assert kaggle.server.requests == []


def test_url_scheme_needs_only_a_row_of_the_table(fetch_one, serve, monkeypatch):
    server = serve({"it.bin": b"b" * 90})

    class Doi(url_schemes.UrlScheme):
        def resolve(self, url, rest, request):
            return url_schemes.ResolvedUrl(f"{server.url}/{rest}.bin")

    assert not url_schemes.is_source_url("doi:it")
    monkeypatch.setitem(url_schemes.SCHEMES, "doi", Doi)
    assert url_schemes.is_source_url("doi:it")
    fetch_one("doi:it")
    assert fetch_one.file.read_bytes() == b"b" * 90


@pytest.mark.parametrize("name", url_schemes.SCHEMES)
def test_url_scheme_properties_follow_the_table(name):
    url = f"{name}://example.org/a"
    assert url_schemes.is_source_url(url)
    assert url_schemes.is_direct(url) == url_schemes.SCHEMES[name].is_direct
    assert url_schemes.server_name(url) in ("example.org", f"{name}:example.org", f"{name}:example.org/a")


def test_server_name_omits_the_file_of_a_collection():
    urls = ("hf:datasets/me/set@main/a/b.zip", "zenodo://12/a.zip", "zenodo:12/b.zip", "gdrive:1abc")
    names = ["hf:datasets/me/set@main", "zenodo:12", "zenodo:12", "gdrive:1abc"]
    assert [url_schemes.server_name(url) for url in urls] == names


@pytest.mark.parametrize("url", ["ftp://example.org/a", "kaggle", "s3://bucket/a", "javascript:alert(1)"])
def test_resolver_rejects_other_schemes(url, fetch_one):
    assert not url_schemes.is_source_url(url)
    with pytest.raises(SourceError, match="Unsupported URL scheme"):
        fetch_one(url)


def test_download_fetches_the_substitutes_of_a_failed_archive(drive, hub, tmp_path):
    drive.page = "<html><title>Quota exceeded</title></html>"
    videos = {"videos/-abc.mp4": b"m" * 5000}
    hub.put("videos.zip", zipped(videos))
    mirror = "hf:datasets/someone/mirror/videos.zip"
    lists = drive.server.url + "/trainSet.txt"
    drive.server.files["/trainSet.txt"] = b"a&b"
    sources = [
        Source(name="all", urls=("gdrive:FILE",), unpack="zip"),
        Source(name="videos", urls=(mirror,), unpack="zip", into="AVE", instead_of="all"),
        Source(name="list", urls=(lists,), into="AVE/trainSet.txt", instead_of="all"),
    ]
    manifest, recipe = make_manifest(sources), make_recipe(clips_from_paths=None)
    assert download(recipe, manifest=manifest, output=drive.root, dry_run=True).sources == ("all",)
    notes = download(recipe, manifest=manifest, output=drive.root, dry_run=True).notes
    assert notes[-1].endswith("verified only if the server states one: all.")
    report = download(recipe, manifest=manifest, output=drive.root)
    assert read_tree(drive.root) == {"AVE/videos/-abc.mp4": b"m" * 5000, "AVE/trainSet.txt": b"a&b"}
    assert report.failed_attempts == 1
    drive.server.requests.clear()
    assert download(recipe, manifest=manifest, output=drive.root).fetched == 0
    assert drive.server.requests == []


def test_download_fetches_no_substitutes_without_a_failure(drive, hub):
    sources = [
        Source(name="all", urls=("gdrive:FILE",), unpack="zip"),
        Source(
            name="videos", urls=("hf:datasets/someone/mirror/videos.zip",), unpack="zip", instead_of="all"
        ),
    ]
    download(make_recipe(clips_from_paths=None), manifest=make_manifest(sources), output=drive.root)
    assert read_tree(drive.root) == drive.files
    assert hub.server.requests == []


def test_download_reports_the_error_of_a_failed_substitute(drive, hub):
    drive.page = "<html><title>Quota exceeded</title></html>"
    sources = [
        Source(name="all", urls=("gdrive:FILE",), unpack="zip"),
        Source(name="videos", urls=(drive.server.url + "/none.zip",), unpack="zip", instead_of="all"),
    ]
    with pytest.raises(SourceError, match="HTTP 404 Not Found"):
        download(make_recipe(clips_from_paths=None), manifest=make_manifest(sources), output=drive.root)
