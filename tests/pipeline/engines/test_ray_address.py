"""A run with Ray fails before the survey if Ray or its cluster cannot be used."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.pipeline.engines.ray_address import check_cluster
from avdata.storage.atomic import DiskError


@pytest.fixture(autouse=True)
def _no_survey(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr("avdata.pipeline.prepare.plan_preparation", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    monkeypatch.delitem(__import__("sys").modules, "ray", raising=False)
    yield
    assert not (tmp_path / "out").exists()


@pytest.fixture
def closed() -> Iterator[str]:
    """An address at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def prepare(source: Path, tmp_path: Path, **options: Any) -> None:
    avdata.prepare("cremad", source=source, output=tmp_path / "out", **options)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_prepare_names_a_wrong_address(closed: str, scheme: str, cremad_mock: Path, tmp_path: Path) -> None:
    with pytest.raises(AvdataError, match=r"No Ray cluster at .*Connection refused") as caught:
        prepare(cremad_mock, tmp_path, engine="ray", ray_address=scheme + closed)
    assert "ray start --head" in str(caught.value.hint)


def test_prepare_names_a_wrong_address_in_the_environment_and_of_an_ended_cluster(
    closed: str, cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = tmp_path / "ray" / "ray" / "ray_current_cluster"
    joined.parent.mkdir(parents=True)
    joined.write_text(closed)
    with pytest.raises(AvdataError, match="ray_current_cluster"):
        prepare(cremad_mock, tmp_path, engine="ray")
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(AvdataError, match=r"No Ray cluster at .*\(RAY_ADDRESS\)"):
        prepare(cremad_mock, tmp_path, engine="ray")


def test_prepare_names_a_malformed_address(cremad_mock: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Invalid address of a Ray cluster in --ray-address: 'head'"):
        prepare(cremad_mock, tmp_path, engine="ray", ray_address="head")


def test_prepare_without_ray_names_the_package(
    cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avdata.pipeline.engines.ray_address.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="Ray is not installed") as caught:
        prepare(cremad_mock, tmp_path, engine="ray")
    assert "avdata[ray]" in str(caught.value.hint)


def test_check_cluster_accepts_an_address_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check_cluster(f"127.0.0.1:{listener.getsockname()[1]}")
    check_cluster("local")
    check_cluster("auto")


def test_prepare_names_an_output_that_is_not_writable(
    cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(dir: Path) -> None:
        assert dir == tmp_path
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("avdata.pipeline.output_dir.TemporaryFile", refused)
    with pytest.raises(DiskError, match=r"out cannot be written .Read-only file system."):
        prepare(cremad_mock, tmp_path)
