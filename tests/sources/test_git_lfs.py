"""git-LFS pointers, the file table of a checkout, and the client of an LFS server."""

from __future__ import annotations

import hashlib
import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.http_server import reply_status
from support.tiny_dataset import make_files, make_manifest, make_recipe, read_tree

from avdata.errors import SourceError
from avdata.manifest import FileEntry, Source, read_file_table
from avdata.sources.download import download
from avdata.sources.git_lfs import (
    build_file_table,
    is_pointer,
    list_lfs_files,
    parse_pointer,
    write_file_table,
)

WAV = b"RIFF" + bytes(1000)


def pointer(content, extension=b""):
    digest = hashlib.sha256(content).hexdigest()
    return (
        b"version https://git-lfs.github.com/spec/v1\n"
        + extension
        + f"oid sha256:{digest}\nsize {len(content)}\n".encode()
    )


@given(content=st.binary(max_size=200))
def test_parse_pointer_returns_checksum_and_size(content):
    expected = ("sha256:" + hashlib.sha256(content).hexdigest(), len(content))
    assert parse_pointer(pointer(content)) == expected
    assert parse_pointer(pointer(content, b"ext-0-foo sha256:" + b"0" * 64 + b"\n")) == expected


@given(data=st.binary(max_size=300))
def test_parse_pointer_rejects_media(data):
    assert parse_pointer(b"RIFF" + data) is None
    assert not is_pointer(b"FLV" + data)


@pytest.mark.parametrize(
    "data",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", pointer(WAV)[:100], pointer(WAV) + bytes(2000)],
)
def test_parse_pointer_rejects_incomplete_pointers(data):
    assert parse_pointer(data) is None


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "AudioWAV").mkdir(parents=True)
    (folder / "AudioMP3").mkdir()
    (folder / "AudioWAV" / "b é.wav").write_bytes(pointer(WAV))
    (folder / "AudioWAV" / "a.wav").write_bytes(pointer(WAV * 2))
    (folder / "AudioMP3" / "a.mp3").write_bytes(pointer(WAV * 3))
    (folder / "labels.csv").write_bytes(b"a,b\n")
    (folder / "link").symlink_to("labels.csv")

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    return folder


def test_list_lfs_files_reads_pointers(checkout):
    entries = list_lfs_files(checkout, ["AudioWAV"])
    assert [(entry.path, entry.bytes) for entry in entries] == [
        ("AudioWAV/a.wav", 2008),
        ("AudioWAV/b é.wav", 1004),
    ]
    assert entries[0].checksum == "sha256:" + hashlib.sha256(WAV * 2).hexdigest()


def test_list_lfs_files_hashes_files_outside_lfs(checkout):
    entries = {entry.path: entry for entry in list_lfs_files(checkout)}
    assert set(entries) == {"AudioMP3/a.mp3", "AudioWAV/a.wav", "AudioWAV/b é.wav", "labels.csv"}
    assert entries["labels.csv"].checksum == "sha256:" + hashlib.sha256(b"a,b\n").hexdigest()


def test_list_lfs_files_reads_the_commit_not_the_working_tree(checkout):
    (checkout / "AudioWAV" / "a.wav").write_bytes(WAV * 2)
    assert list_lfs_files(checkout, ["AudioWAV"])[0].bytes == 2008


def test_list_lfs_files_names_a_missing_folder(checkout):
    with pytest.raises(SourceError, match="VideoFlash"):
        list_lfs_files(checkout, ["VideoFlash"])


def test_list_lfs_files_names_a_folder_without_git(tmp_path, monkeypatch):
    # The temporary folder itself may be in a checkout.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SourceError, match="Cannot read the git checkout"):
        list_lfs_files(tmp_path)


def test_file_table_is_read_back_as_written(tmp_path):
    entries = [
        FileEntry(path="b.wav", checksum="sha256:" + "0" * 64, bytes=5),
        FileEntry(path="a é.wav", checksum="md5:" + "1" * 32),
    ]
    write_file_table(tmp_path / "t.tsv.gz", entries)
    write_file_table(tmp_path / "u.tsv.gz", entries[::-1])
    assert read_file_table(tmp_path / "t.tsv.gz") == entries[::-1]
    assert (tmp_path / "t.tsv.gz").read_bytes() == (tmp_path / "u.tsv.gz").read_bytes()


def test_build_file_table_lists_a_checkout(checkout, tmp_path):
    build_file_table(checkout, tmp_path / "t.tsv.gz", ["AudioWAV", "AudioMP3"])
    paths = [entries.path for entries in read_file_table(tmp_path / "t.tsv.gz")]
    assert paths == ["AudioMP3/a.mp3", "AudioWAV/a.wav", "AudioWAV/b é.wav"]


class LfsServer:
    """A git-LFS server: `owner/repo.git/info/lfs/objects/batch`, and the objects."""

    def __init__(self, serve, files):
        self.server = serve({hashlib.sha256(content).hexdigest(): content for content in files.values()})
        self.server.posts = self.batch
        self.batches = []
        self.errors = {}
        self.token = None
        self.expiry = {}

    @property
    def url(self):
        return "lfs+" + self.server.url + "/owner/repo.git"

    def batch(self, path, body):
        assert path == "/owner/repo.git/info/lfs/objects/batch"
        assert body["operation"] == "download"
        self.batches.append(len(body["objects"]))
        return 200, {"transfer": "basic", "objects": [self.describe(entry) for entry in body["objects"]]}

    def describe(self, entry):
        oid = entry["oid"]
        if oid in self.errors:
            return {**entry, "error": {"code": self.errors[oid], "message": "Object does not exist"}}
        header = {"Authorization": self.token} if self.token else {}
        action = {"href": f"{self.server.url}/{oid}", "header": header, **self.expiry}
        return {**entry, "actions": {"download": action}}


@pytest.fixture
def lfs(serve, tmp_path):
    files = make_files(250, size=60)
    server = LfsServer(serve, files)
    server.files = files
    server.manifest = make_manifest(
        [Source(name="media", urls=(server.url,), table="t")], tables={"t": files}
    )
    server.root = tmp_path / "root"
    server.download = lambda **options: download(
        make_recipe(), manifest=server.manifest, output=server.root, **options
    )
    return server


def test_lfs_client_requests_objects_in_batches_of_100(lfs):
    lfs.download()
    assert read_tree(lfs.root) == lfs.files
    assert sorted(lfs.batches) == [50, 100, 100]


def test_lfs_client_sends_the_requested_headers_and_no_login(lfs):
    lfs.token = "RemoteAuth abc"
    lfs.download(limit=1)
    posts = [request for request in lfs.server.requests if request.method == "POST"]
    gets = [request for request in lfs.server.requests if request.method == "GET"]
    assert all("Authorization" not in request.headers for request in posts)
    assert all(request.headers["Authorization"] == "RemoteAuth abc" for request in gets)
    assert posts[0].headers["Accept"] == "application/vnd.git-lfs+json"


def test_lfs_client_prefetches_the_next_batch(lfs):
    lfs.download(connections=1)
    methods = "".join(request.method[0] for request in lfs.server.requests)
    assert methods.index("P", 1) < 60
    assert methods.rindex("P") < 160


def test_lfs_client_requests_a_new_link_after_an_error(lfs):
    path, content = sorted(lfs.files.items())[0]
    lfs.server.faults["/" + hashlib.sha256(content).hexdigest()].append(reply_status(503))
    lfs.download(keys={path.removeprefix("flv/").removesuffix(".flv")})
    assert lfs.batches == [2, 1]


def test_lfs_object_missing_on_the_server_comes_from_the_next_url(lfs, serve):
    path, content = sorted(lfs.files.items())[3]
    lfs.errors[hashlib.sha256(content).hexdigest()] = 404
    media = serve(lfs.files)
    source = Source(name="media", urls=(lfs.url, media.url + "/{path}"), table="t")
    lfs.manifest = make_manifest([source], tables={"t": lfs.files})
    lfs.download()
    assert read_tree(lfs.root) == lfs.files
    assert [request.path for request in media.requests] == ["/" + path]


def test_lfs_quota_error_leads_to_the_next_url(lfs, serve):
    lfs.server.posts = lambda path, body: (403, {"message": "This repository is over its data quota."})
    mirror = LfsServer(serve, lfs.files)
    lfs.manifest = make_manifest(
        [Source(name="media", urls=(lfs.url, mirror.url), table="t")], tables={"t": lfs.files}
    )
    lfs.download(connections=2)
    assert read_tree(lfs.root) == lfs.files
    assert len([request for request in lfs.server.requests if request.method == "POST"]) < 12


@pytest.mark.parametrize(
    "change",
    [
        {"href": 3}, {"href": None}, {"href": ["http://127.0.0.1/a"]}, {"header": [1]}, {"header": "x"},
        {"header": {"A": 1}}, {"header": {"A": None}}, {"size": "x"}, {"size": 1.5}, {"expires_in": "x"},
        {"expires_at": 3},
    ],
)  # fmt: skip
def test_lfs_client_refuses_values_of_another_type(lfs, change):
    def batch(path, body):
        status, answer = lfs.batch(path, body)
        for entry in answer["objects"]:
            (entry if "size" in change else entry["actions"]["download"]).update(change)
        return status, answer

    lfs.server.posts = batch
    with pytest.raises(SourceError, match="Not a git-LFS server"):
        lfs.download(limit=1)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://[::1", "http://127.0.0.1:99999/a", "x", ""])
def test_lfs_client_refuses_links_that_are_not_http(lfs, url):
    describe = lfs.describe

    def hostile(entry):
        described = describe(entry)
        described["actions"]["download"]["href"] = url
        return described

    lfs.describe = hostile
    with pytest.raises(SourceError, match=r"^Link that is no http URL: "):
        lfs.download(limit=1)


def test_lfs_client_explains_an_answer_that_is_not_lfs(lfs):
    lfs.server.posts = lambda path, body: (200, ["welcome"])
    with pytest.raises(SourceError, match="Not a git-LFS server"):
        lfs.download(limit=1)


@pytest.mark.parametrize(
    "expiry",
    [{"expires_in": 600}, {"expires_at": "2999-01-01T00:00:00Z"}, {"expires_at": "0001-01-01T00:00:00Z"}],
)
def test_lfs_client_keeps_links_until_they_expire(lfs, expiry):
    lfs.expiry = expiry
    lfs.download()
    assert sorted(lfs.batches) == [50, 100, 100]


@pytest.mark.parametrize("expiry", [{"expires_in": 1}, {"expires_at": "2020-01-01T00:00:00Z"}])
def test_lfs_client_requests_fewer_links_ahead_if_they_expire(lfs, expiry):
    lfs.expiry = expiry
    lfs.download(limit=20, connections=1)
    assert len(read_tree(lfs.root)) == 40
    assert lfs.batches[-1] == 1
    assert sum(lfs.batches) < 200


def test_lfs_link_that_is_refused_is_requested_anew_once(lfs):
    digests = [hashlib.sha256(content).hexdigest() for content in lfs.files.values()]
    for digest in digests[:30]:
        lfs.server.faults[f"/{digest}"].append(reply_status(403))
    lfs.download()
    assert read_tree(lfs.root) == lfs.files
    lfs.server.always = reply_status(403)
    (lfs.root / next(iter(lfs.files))).unlink()
    lfs.server.requests.clear()
    with pytest.raises(SourceError, match="HTTP 403"):
        lfs.download()
    assert [request.method for request in lfs.server.requests] == ["POST", "GET"] * 2


def test_lfs_client_requests_a_failing_batch_once_for_all_threads(lfs, clock):
    lfs.server.posts = lambda path, body: (500, {})
    with pytest.raises(SourceError, match="HTTP 500"):
        lfs.download(give_up_after=60)
    assert len(lfs.server.requests) < 10


def test_lfs_sources_of_one_repository_share_batches(lfs):
    entries = make_manifest([], lfs.files).files[:20]
    url = lfs.url.removesuffix(".git")
    sources = [
        Source(name=f"s{number}", urls=(url,), checksum=entry.checksum, bytes=entry.bytes, into=entry.path)
        for number, entry in enumerate(entries)
    ]
    lfs.manifest = make_manifest(sources)
    lfs.download()
    assert len(read_tree(lfs.root)) == 20
    assert lfs.batches == [20]


@pytest.mark.parametrize("suffix", ["", "/{path}"])
def test_lfs_source_without_a_table_serves_the_manifests_files(lfs, suffix):
    url = lfs.url.removesuffix(".git") + suffix
    lfs.manifest = make_manifest([Source(name="media", urls=(url,))], lfs.files)
    lfs.download()
    assert read_tree(lfs.root) == lfs.files


def test_lfs_storage_that_is_given_up_does_not_affect_files_of_the_same_host(lfs, clock):
    """Links lead to a host that never answers; a plain URL of the batch server's host serves the files."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        storage = f"http://127.0.0.1:{bound.getsockname()[1]}"
        lfs.describe = lambda entry: {**entry, "actions": {"download": {"href": f"{storage}/{entry['oid']}"}}}
        lfs.server.files.update({"/" + path: content for path, content in lfs.files.items()})
        source = Source(name="media", urls=(lfs.url, lfs.server.url + "/{path}"), table="t")
        lfs.manifest = make_manifest([source], tables={"t": lfs.files})
        lfs.download(limit=20)
    assert len(read_tree(lfs.root)) == 40
