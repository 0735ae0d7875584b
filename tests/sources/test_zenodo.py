"""Sources of Zenodo records against a loopback server that answers as Zenodo's API does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.http_server import LoopbackServer, corrupt_byte, reply_status
from support.tiny_dataset import make_manifest, make_recipe, read_tree
from support.trees import zipped

import avdata
from avdata.errors import SourceError, UnavailableError, UsageError
from avdata.manifest import Source
from avdata.recipe import load_recipe
from avdata.sources import zenodo
from avdata.sources.download import download
from avdata.sources.source_dir import unpack_archive_file

RECORD = "/api/records/1188976"

ARCHIVE = "Video Speech_01.zip"


class Zenodo:
    """A record with one archive and one list, and a download of both."""

    def __init__(self, server: LoopbackServer, root: Path) -> None:
        self.server, self.root = server, root
        self.content = {ARCHIVE: zipped({"Actor_01/a.mp4": b"m" * 4000}), "list.csv": b"a,b\n"}
        for name, content in self.content.items():
            server.files[f"{RECORD}/files/{name}/content"] = content
        self.publish()
        urls = {name: f"zenodo:1188976/{name.replace(' ', '%20')}" for name in self.content}
        self.manifest = make_manifest(
            [
                Source(name="speech-01", urls=(urls[ARCHIVE],), unpack="zip"),
                Source(name="list", urls=(urls["list.csv"],), into="list.csv"),
            ]
        )

    def publish(self, **changes: Any) -> None:
        """Answer the record's request with the fields of a genuine answer that matter, and others."""
        files = [
            {
                "id": "f8a1", "key": name, "size": len(content),
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{self.server.url}{RECORD}/files/{name}/content"},
            }
            for name, content in self.content.items()
        ]  # fmt: skip
        record = {"id": 1188976, "doi": "10.5281/zenodo.1188976", "state": "done", "files": files, **changes}
        self.server.files[RECORD] = json.dumps(record).encode()

    def download(self, **options: Any) -> Any:
        recipe = make_recipe(clips_from_paths=None)
        return download(recipe, manifest=self.manifest, output=self.root, **options)

    def asked(self) -> int:
        return sum(request.path == RECORD for request in self.server.requests)


@pytest.fixture
def record(serve: Callable[..., LoopbackServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Zenodo:
    server = serve()
    monkeypatch.setattr(zenodo, "API_URL", server.url + "/api/records/{record}")
    return Zenodo(server, tmp_path / "root")


def test_download_verifies_the_files_of_a_record_by_its_md5(record: Zenodo) -> None:
    report = record.download()
    assert read_tree(record.root) == {"Actor_01/a.mp4": b"m" * 4000, "list.csv": b"a,b\n"}
    assert report.checksums["list"] == f"md5:{hashlib.md5(b'a,b' + bytes([10])).hexdigest()}"
    assert record.asked() == 1


def test_download_retries_a_file_with_another_md5(record: Zenodo) -> None:
    record.server.faults[f"{RECORD}/files/{ARCHIVE}/content"].append(corrupt_byte(200))
    assert record.download().failed_attempts == 1
    assert (record.root / "Actor_01" / "a.mp4").read_bytes() == b"m" * 4000


def test_download_asks_once_and_keeps_what_it_saw(record: Zenodo) -> None:
    record.download()
    record.server.files[RECORD] = b"not asked"
    (record.root / "list.csv").unlink()
    record.download()
    assert record.asked() == 1
    record.server.files[f"{RECORD}/files/list.csv/content"] = b"a,c\n"
    (record.root / "list.csv").unlink()
    with pytest.raises(SourceError, match="Checksum mismatch"):
        record.download()


def test_dry_run_sends_no_request(record: Zenodo) -> None:
    assert record.download(dry_run=True).unknown == 2
    assert record.server.requests == []
    record.download()
    (record.root / "list.csv").unlink()
    assert record.download(dry_run=True).bytes == 4


def test_manifest_checksum_takes_precedence_over_the_record(record: Zenodo) -> None:
    source = record.manifest.sources[1].model_copy(update={"checksum": f"sha256:{'0' * 64}"})
    record.manifest = record.manifest.model_copy(update={"sources": (source,)})
    with pytest.raises(SourceError, match="Checksum mismatch: sha256"):
        record.download()


def test_record_is_requested_again_after_a_server_error(record: Zenodo) -> None:
    record.server.faults[RECORD].append(reply_status(503, {"Retry-After": "0"}))
    record.download()
    assert record.asked() == 2


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((404, b"{}"), SourceError, "record 1188976 cannot be read"),
        ((400, b"{}"), UnavailableError, "does not answer"),
        ((200, b'{"metadata": {"access_right": "restricted"}}'), SourceError, "No list of files"),
        ((200, b'{"files": [{"key": "x", "size": 1, "checksum": "../../x"}]}'), SourceError, "No list of"),
        ((200, b'{"files": []}'), SourceError, f"has no file {ARCHIVE!r}"),
        ((200, b"[" * 100_000), SourceError, "No list of files"),
    ],
)
def test_unusable_record_is_explained(
    record: Zenodo, answer: tuple[int, bytes], error: type[Exception], words: str
) -> None:
    record.server.pages[RECORD] = lambda handler: handler.reply(*answer)
    with pytest.raises(error, match=words):
        record.download()
    assert not (record.root / "list.csv").exists()


@pytest.mark.parametrize("url", ["zenodo:1188976", "zenodo:x/y.zip", "zenodo:1/a/b.zip"])
def test_url_of_another_form_is_rejected(record: Zenodo, url: str) -> None:
    record.manifest = make_manifest([Source(name="it", urls=(url,), into="it.bin")])
    with pytest.raises(UsageError, match="The form is zenodo:RECORD/FILE"):
        record.download()


def test_dataset_json_states_size_and_md5_that_the_record_stated(
    record: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = avdata.mock("synthetic", tmp_path / "raw", clips=4)
    members = {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.rglob("*.*")}
    del members["manifest.json"]
    record.content[ARCHIVE] = archive = zipped(members)
    record.server.files[f"{RECORD}/files/{ARCHIVE}/content"] = archive
    record.publish()
    sources = record.manifest.sources[:1]
    manifest = record.manifest.model_copy(update={"name": "synthetic", "sources": sources})
    path = tmp_path / "manifest.json"
    path.write_text(manifest.model_dump_json())
    recipe = replace(load_recipe("synthetic"), generated=False)
    done = avdata.prepare(
        recipe, output=tmp_path / "out", manifest=path, config={"video": {"size": 16}}, workers=0
    )
    (source,) = json.loads((tmp_path / "out" / "dataset.json").read_text())["source"]["sources"]
    assert done.samples == 4
    assert source["bytes"] == len(archive)
    assert source["checksum"] == f"md5:{hashlib.md5(archive).hexdigest()}"
    assert source["urls"] == [f"zenodo:1188976/{ARCHIVE.replace(' ', '%20')}"]


def test_archive_file_is_recognized_by_its_name_among_those_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "s5.zip").write_bytes(zipped({"s5/bbie8n.mpg": b"x"}))
    root = unpack_archive_file("grid", tmp_path / "s5.zip")
    assert read_tree(root) == {"s5/bbie8n.mpg": b"x"}
    assert (root / ".avdata" / "s5.json").is_file()
    assert not (root / ".avdata" / "s1.json").exists()
