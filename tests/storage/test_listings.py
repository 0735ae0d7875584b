"""Listings of remote folders: complete, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.storage import remote_files
from avdata.storage.remote_files import list_files


class Unreliable(LocalFileSystem):
    """Folder of this machine that fails to list its subfolder `lost`."""

    protocol = "unreliable"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("unreliable://host")

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        if path.endswith("/lost"):
            raise ConnectionResetError(104, "Connection reset by peer")
        return super().ls(path, detail=detail, **kwargs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "deep/er/b.wav", "deep/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    return tmp_path


@pytest.fixture
def unreliable(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr(remote_files, "INITIAL_DELAY_S", 0.0)


@pytest.mark.usefixtures("unreliable")
def test_listing_has_all_files_below(folder: Path) -> None:
    for server in ("file://", "unreliable://host"):
        listing = list_files(f"{server}{folder}")
        assert {name: file.bytes for name, file in listing.items()} == dict.fromkeys(
            ("a.wav", "deep/er/b.wav", "deep/c.wav"), 5
        )


@pytest.mark.usefixtures("unreliable")
def test_folder_that_cannot_be_listed_is_an_error(folder: Path) -> None:
    (folder / "deep" / "lost").mkdir()
    with pytest.raises(AvdataError, match="Connection reset by peer"):
        list_files(f"unreliable://host{folder}")


@pytest.mark.usefixtures("unreliable")
def test_missing_folder_has_no_files(folder: Path) -> None:
    assert list_files(f"file://{folder}/no") == list_files(f"unreliable://host{folder}/no") == {}


def test_unreachable_server_is_an_error() -> None:
    with pytest.raises(AvdataError, match=r"ftp://127\.0\.0\.1:1"):
        list_files("ftp://127.0.0.1:1/set")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/set", "https://user:secret@host.invalid/set"])
def test_web_server_is_refused_as_source_and_output(url: str, cremad_mock: Path, tmp_path: Path) -> None:
    for options in ({"source": url, "output": tmp_path / "out"}, {"source": cremad_mock, "output": url}):
        with pytest.raises(UsageError, match="A web server sends single files") as caught:
            avdata.prepare("cremad", **options)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()
