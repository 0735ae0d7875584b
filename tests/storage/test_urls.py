"""An impossible URL is refused at once, with one sentence, wherever it is stated."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_dataset import make_manifest, make_recipe

from avdata import open_dataset, verify
from avdata.errors import AvdataError, UsageError
from avdata.manifest import Source
from avdata.pipeline.merge import merge
from avdata.pipeline.output import open_output
from avdata.sources.download import download
from avdata.sources.manifest_check import check_manifest
from avdata.sources.object_storage import survey_source
from avdata.storage import retry
from avdata.storage.paths import cache_dir
from avdata.storage.remote_files import read_file
from avdata.storage.urls import check_url

IMPOSSIBLE = (
    "http://[::1/set",
    "http://HOST:99999/set",
    "http://host:0/set",
    "http://host:port/set",
    "http:///set",
    "https://:443/set",
    "https://[zz]/set",
    "https://a b/set",
    "https://a\tb/set",
    "https://a..b/set",
    f"https://{'a' * 64}.org/set",
)

PLACES = {
    "read": lambda url: read_file(f"{url}/dataset.json"),
    "verify": verify,
    "open": open_dataset,
    "source": survey_source,
    "merge": merge,
    "output": lambda url: open_output(url).file_sizes(),
}


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(seconds: float) -> None:
        pytest.fail("an impossible URL was tried again")

    monkeypatch.setattr(retry.time, "sleep", refuse)
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("url", [*IMPOSSIBLE, "s3://", "gs:///set", "s3://[::1/set"])
def test_impossible_url_is_refused_at_once(place: str, url: str) -> None:
    with pytest.raises(AvdataError, match="Invalid URL"):
        PLACES[place](url)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:p%40ss@example.org:8443/a?b#c", "http://[::1]:80/a", "http://127.0.0.1/", "https://bücher.de/a",
        "https://my_host.local./a", "s3://bucket_a/x", "hf://datasets/me/set@refs%2Fpr%2F1/x", "abfs://a@b.c/x",
        "memory://", "file:///a", "lfs+https://example.org/a.git", "https://example.org/{path}",
    ],
)  # fmt: skip
def test_check_url_accepts_what_can_be_requested(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *IMPOSSIBLE,
        *(f"lfs+{url}" for url in IMPOSSIBLE),
        "hf:datasets/me",
        "hf:me/set/a.zip",
        "kaggle:set",
        "zenodo:12",
        "zenodo:record/a.zip",
    ],
)
def test_impossible_url_of_a_manifest_is_refused_before_the_first_request(tmp_path: Path, url: str) -> None:
    # As the second mirror: the first one is not asked either.
    source = Source(name="media", urls=("http://127.0.0.1:9/a.zip", url), unpack="zip")
    manifest = make_manifest([source])
    for is_dry in (True, False):
        with pytest.raises(UsageError, match="Invalid URL in source 'media' of the manifest"):
            download(make_recipe(), manifest=manifest, output=tmp_path, dry_run=is_dry)
    assert any(text.startswith("source 'media': Invalid URL") for text in check_manifest(manifest))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["http://[::1", "http://host:99999", "nonsense"])
@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("HTTPS_PROXY", "https://example.invalid/set/dataset.json"),
        ("AWS_ENDPOINT_URL", "s3://bucket/set/dataset.json"),
    ],
)
def test_impossible_address_in_a_variable_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, address: str
) -> None:
    for name, value in {variable: address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="Cannot read") as caught:
        read_file(url)
    assert "proxy or server" in str(caught.value.hint)


def test_cache_dir_refuses_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVDATA_CACHE", "s3://bucket/cache")
    with pytest.raises(UsageError, match="AVDATA_CACHE is a URL"):
        cache_dir()
