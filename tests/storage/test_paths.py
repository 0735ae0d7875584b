"""Cache folder and path checks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import avdata
from avdata.errors import UsageError
from avdata.storage.paths import cache_dir, check_path_encoding, is_safe_relative_path, local_path


def test_cache_dir_is_the_override(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("AVDATA_CACHE", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "elsewhere"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other cache folders")
def test_cache_dir_follows_xdg_on_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AVDATA_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "avdata"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "avdata"


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../a", "a/../../b", "/a", "a\\b", "C:/a", "a\0b", "a\tb", "a\nb"]
)
def test_is_safe_relative_path_rejects_other_paths(path: str) -> None:
    assert not is_safe_relative_path(path)


def test_check_path_encoding_rejects_other_encodings_than_utf8() -> None:
    check_path_encoding("dataset/ä")
    with pytest.raises(UsageError, match="is not UTF-8"):
        check_path_encoding("dataset/\udcff")


@pytest.mark.parametrize("location", ["s3://bucket/set", "hf://datasets/me/set", "file:///tmp/s", "gs:/b/s"])
def test_local_path_refuses_a_url(location: str) -> None:
    for given in (location, Path(location)):
        with pytest.raises(UsageError, match="Cannot write to a URL here"):
            local_path(given)


@pytest.mark.parametrize("location", ["out/set", "/out", "C:/out", "a:b", "out/s3:/set", ".", "~/x"])
def test_local_path_is_any_other_path(location: str) -> None:
    assert local_path(location) == Path(location)


@pytest.mark.parametrize(
    "write",
    [
        lambda url: avdata.download("cremad", output=url),
        lambda url: avdata.mock("cremad", url),
        lambda url: avdata.pull("me/set", url),
        lambda url: avdata.export("set", url, "ogm-ge"),
    ],
    ids=["download", "mock", "pull", "export"],
)
def test_functions_that_write_locally_refuse_a_url(write: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match="Cannot write to a URL here: s3://bucket/set"):
        write("s3://bucket/set")
