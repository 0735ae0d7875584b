"""Tests of manifests: loading, checks and the bundled manifests."""

from __future__ import annotations

import gzip
import json

import pytest

from avdata.errors import AvdataError, UsageError
from avdata.manifest import load_facts, load_manifest, manifest_names
from avdata.sources.manifest_check import check_manifest, check_manifests
from avdata.sources.url_schemes import server_name

SHA = "sha256:" + "a" * 64


def write(folder, *, table=None, **changes):
    manifest = {
        "name": "tiny",
        "title": "Tiny",
        "homepage": "https://example.org",
        "license": {"id": "odbl", "name": "ODbL", "publish": "yes", "note": "share alike"},
        "citation": "Nobody, 2026",
        "sources": [{"name": "media", "urls": ["https://example.org/{path}"], "table": "tiny.files.tsv.gz"}],
        **changes,
    }
    rows = table if table is not None else [f"a.flv\t{SHA}\t10", f"b.flv\t{SHA}\t20"]
    (folder / "tiny.files.tsv.gz").write_bytes(
        gzip.compress("\n".join(["path\tchecksum\tbytes", *rows]).encode())
    )
    path = folder / "tiny.json"
    path.write_text(json.dumps(manifest))
    return path


def source(**changes):
    return [
        {"name": "media", "urls": ["https://example.org/{path}"], "table": "tiny.files.tsv.gz", **changes}
    ]


def test_check_manifests_accepts_the_bundled_manifests():
    found = check_manifests()
    assert set(found) == set(manifest_names()) >= {"cremad"}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_cremad_manifest_lists_the_files_of_the_pinned_commit():
    manifest = load_manifest("cremad")
    assert manifest.commit == "1658cd342dff90010aa843eaeebd53610a08b1dc"
    sizes = {"AudioWAV": 605_899_936, "VideoFlash": 2_443_021_141}
    for folder, total in sizes.items():
        files = [facts for facts in manifest.files if facts.path.startswith(folder + "/")]
        assert (len(files), sum(facts.bytes for facts in files)) == (7442, total)


def test_cremad_manifest_lists_its_mirrors_in_order():
    """The repository on GitHub exceeds its LFS budget (CREMA-D's issue 15); its author names the mirror."""
    media, *lists = load_manifest("cremad").sources
    assert [server_name(url) for url in media.urls] == [
        "gitlab.com", "gitlab.com", "github.com", "media.githubusercontent.com",
    ]  # fmt: skip
    assert [len({server_name(url) for url in source.urls}) for source in lists] == [2, 2]
    assert all(source.checksum for source in lists)


def test_check_manifest_accepts_a_valid_manifest(tmp_path):
    manifest = load_manifest(write(tmp_path))
    assert check_manifest(manifest) == []
    assert [facts.path for facts in manifest.files] == ["a.flv", "b.flv"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sources": source() * 2}, "duplicate source name 'media'"),
        ({"sources": source(urls=["ftp://example.org/{path}"])}, "unsupported URL scheme"),
        ({"sources": source(urls=[])}, "no URL"),
        ({"sources": source(name="a/b")}, "its name is not a valid file name"),
        ({"sources": source(into="../up")}, "not below the dataset's folder"),
        ({"sources": source(urls=["https://example.org/all"])}, "a URL without {path}"),
        ({"sources": source(bytes=31)}, "bytes is 31, but its files have 30"),
        ({"sources": source(table=None)}, "a URL with {path}, but the source has no table"),
        ({"table": [f"../a\t{SHA}\t1"]}, "'../a' is not below"),
        ({"table": [f"/a\t{SHA}\t1"]}, "'/a' is not below"),
        ({"table": [f"a\t{SHA}\t1", f"A\t{SHA}\t1"]}, "only by case"),
        ({"table": [f"b\t{SHA}\t1", f"a\t{SHA}\t1"]}, "not sorted"),
    ],
)
def test_check_manifest_reports_problems(tmp_path, changes, problem):
    problems = check_manifest(load_manifest(write(tmp_path, **changes)))
    assert any(problem in text for text in problems), problems


@pytest.mark.parametrize(
    "row",
    ["a.flv", f"a.flv\t{SHA}", "a.flv\tsha256:123\t5", f"a.flv\t{SHA}\t-5", f"\t{SHA}\t5", f"a\tb\t{SHA}\t5"],
)
def test_load_manifest_names_the_malformed_line_of_a_table(tmp_path, row):
    with pytest.raises(AvdataError, match=r"tiny\.files\.tsv\.gz line 3"):
        load_manifest(write(tmp_path, table=[f"a.flv\t{SHA}\t5", row]))


def test_load_manifest_accepts_unknown_sizes(tmp_path):
    manifest = load_manifest(write(tmp_path, table=[f"a.flv\t{SHA}\t", f"b.flv\tmd5:{'0' * 32}\t"]))
    assert [facts.bytes for facts in manifest.files] == [None, None]


@pytest.mark.parametrize(("changes", "field"), [({"license": {}}, "license.id"), ({"color": 1}, "color")])
def test_load_manifest_names_a_missing_or_unknown_field(tmp_path, changes, field):
    with pytest.raises(AvdataError, match=field):
        load_manifest(write(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"title":"\\ud800"}', '{"format":' + "9" * 5000 + "}"])
def test_load_manifest_refuses_damaged_json(tmp_path, text):
    (tmp_path / "tiny.json").write_text(text)
    with pytest.raises(AvdataError, match=r"^Invalid manifest .*Invalid JSON"):
        load_manifest(tmp_path / "tiny.json")


@pytest.mark.parametrize(
    "table",
    [
        None,
        b"abc",
        gzip.compress(b"h\n")[:-8],
        gzip.compress(b"h\n")[:10] + b"\xff" * 50,
        gzip.compress(b"\xff"),
    ],
    ids=["missing", "plain", "cut", "damaged", "not UTF-8"],
)
def test_load_manifest_refuses_a_damaged_table(tmp_path, table):
    path = write(tmp_path)
    file = path.with_name("tiny.files.tsv.gz")
    file.unlink() if table is None else file.write_bytes(table)
    with pytest.raises(AvdataError, match=r"^The file table .*tiny\.files\.tsv\.gz cannot be read"):
        load_manifest(path)


def test_load_manifest_names_a_missing_manifest(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.json"):
        load_manifest(tmp_path / "nothing.json")
    with pytest.raises(UsageError, match="'nothing'"):
        load_manifest("nothing")


HEADER = "key\tfact\tvalue\tsource"


def facts(folder, monkeypatch, *lines):
    (folder / "tiny.clips.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("avdata.manifest.package_files", lambda package: folder)
    return load_facts("tiny.clips.tsv", facts=("black", "twin"), keys=r"c\d")


def test_load_facts_returns_values_by_fact_and_key(tmp_path, monkeypatch):
    found = facts(tmp_path, monkeypatch, HEADER, "c1\ttwin\tc2\tchecksums", "c2\ttwin\tc1\tchecksums")
    assert found == {"black": {}, "twin": {"c1": "c2", "c2": "c1"}}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "c1\tblack\tframes",  # a column is missing
        "d1\tblack\t\tframes",  # unknown key
        "c10\tblack\t\tframes",  # unknown key with a valid prefix
        "c1\tgrey\t\tframes",  # unknown fact
        "c1\tblack\t\t",  # no source
        "c0\tblack\t\tframes",  # repeated
    ],
)
def test_load_facts_names_the_malformed_line(tmp_path, monkeypatch, line):
    with pytest.raises(AvdataError, match=r"tiny\.clips\.tsv line 3"):
        facts(tmp_path, monkeypatch, HEADER, "c0\tblack\t\tframes", line)


def test_load_facts_requires_the_header(tmp_path, monkeypatch):
    with pytest.raises(AvdataError, match="line 1"):
        facts(tmp_path, monkeypatch, "key\tvalue", "c1\tblack\t\tframes")
