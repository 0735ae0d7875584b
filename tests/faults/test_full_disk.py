"""A full disk, a used-up quota, a limit of file sizes: one sentence, no half file, and the command resumes.

`RLIMIT_FSIZE` makes every write of this process beyond a size fail, also those of libraries, and needs no
privileges. It has an error number of its own, so the tests of `write_errors` check those of disks and quotas.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.hub_fixtures import hub, own_set, slept
from support.hub_server import HubServer
from support.trees import digest_tree

import avdata
from avdata.cli.console import run_command
from avdata.cli.main import app
from avdata.errors import AvdataError, UnavailableError
from avdata.storage import atomic
from avdata.storage.atomic import DiskError, atomic_write, check_space, write_errors
from avdata.streaming.shard_cache import ShardCache
from snnergy.training.checkpoint import save

__all__ = ["hub", "own_set", "slept"]


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Limit the size of the files that this process writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def half_files(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if ".part" in path.name or path.parent.name == "parts"]


@pytest.mark.parametrize(
    ("number", "start"),
    [(errno.ENOSPC, "The disk is full: "), (errno.EDQUOT, "The disk quota is used up: ")],
)
def test_write_errors_states_needed_and_free_bytes(
    number: int, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "free_bytes", lambda path: 1234)
    with pytest.raises(DiskError) as caught, write_errors(tmp_path / "f", 56789):
        raise OSError(number, os.strerror(number))
    assert caught.value.message == (
        f"{start}{tmp_path / 'f'} cannot be written (56,789 bytes needed, 1,234 bytes free)."
    )
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("Finished files are kept.")


def test_atomic_write_keeps_the_old_file_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    with largest_file(1000), pytest.raises(DiskError, match=r"5,000 bytes needed, 1,000 allowed"):
        atomic_write(path, bytes(5000))
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"report.html": b"old"}


def test_check_space_compares_with_the_free_bytes(tmp_path: Path) -> None:
    check_space(tmp_path / "new" / "folder", 1)
    with pytest.raises(DiskError, match="1,000,000,000,000,000,000 bytes needed"):
        check_space(tmp_path / "new" / "folder", 10**18)


def test_prepare_resumes_after_a_full_disk(cremad_mock: Path, cremad_set: Path, tmp_path: Path) -> None:
    settings = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}
    shards = {path.name: path.stat().st_size for path in cremad_set.rglob("*.tar")}
    out = tmp_path / "out"

    def prepare() -> Any:
        return avdata.prepare("cremad", source=cremad_mock, output=out, config=settings, workers=0)

    with (
        largest_file(max(shards.values()) - 1),
        pytest.raises(DiskError, match=r"tar\S* cannot be written.*[\d,]+ bytes needed, [\d,]+ allowed"),
    ):
        prepare()
    assert half_files(out) == []
    for path in out.rglob("*.tar"):
        assert path.stat().st_size == shards[path.name]
    prepare()
    assert digest_tree(out) == digest_tree(cremad_set)


def write_report(root: Path, out: Path) -> object:
    return avdata.report(root, out / "report.html")


def write_arrays(root: Path, out: Path) -> object:
    return avdata.export(root, out)


@pytest.mark.parametrize("write", [write_report, write_arrays])
def test_report_and_export_leave_no_half_file(
    write: Callable[[Path, Path], object], cremad_set: Path, tmp_path: Path
) -> None:
    with largest_file(20_000), pytest.raises(DiskError, match=r"bytes needed, 20,000 allowed"):
        write(cremad_set, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".avdata-export.json"] == []


def test_export_checks_the_space_first(
    cremad_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = np.array([4, 8])
    monkeypatch.setattr("avdata.storage.atomic.free_bytes", lambda path: int(shape.sum()))
    with pytest.raises(DiskError, match=r"[\d,]{9,} bytes needed, 12 bytes free"):
        avdata.export(cremad_set, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".avdata-export.json"] == []


def test_pull_resumes_after_a_full_disk(
    hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avdata.publish(own_set, "me/set")
    out = tmp_path / "pulled"
    with monkeypatch.context() as patch:
        patch.setattr("avdata.storage.atomic.free_bytes", lambda path: 1000)
        with pytest.raises(DiskError, match=r"[\d,]{7,} bytes needed, 1,000 bytes free"):
            avdata.pull("me/set", out)
    with largest_file(100_000), pytest.raises(DiskError, match="exceed the size limit"):
        avdata.pull("me/set", out)
    assert not (out / "dataset.json").exists()
    avdata.pull("me/set", out)
    assert digest_tree(out) == digest_tree(own_set)


def test_publish_leaves_the_card_on_a_full_disk(hub: HubServer, own_set: Path) -> None:
    (own_set / "README.md").unlink()
    before = digest_tree(own_set)
    with largest_file(100), pytest.raises(DiskError, match="exceed the size limit"):
        avdata.publish(own_set, "me/set")
    assert digest_tree(own_set) == before
    avdata.publish(own_set, "me/set")
    avdata.pull("me/set", own_set.with_name("pulled"))
    assert digest_tree(own_set.with_name("pulled")) == digest_tree(own_set)


def test_shard_cache_states_needed_and_free_bytes(synthetic_set: Path, tmp_path: Path) -> None:
    shard = next(synthetic_set.rglob("*.tar"))
    size = shard.stat().st_size
    cache = ShardCache(tmp_path / "cache")
    with (
        largest_file(size - 1),
        pytest.raises(UnavailableError, match=f"{size:,} bytes needed, {size - 1:,} allowed"),
    ):
        cache.fetch(shard.as_uri(), "0" * 64, size)
    assert [path.suffix for path in (tmp_path / "cache").rglob("*.*")] == [".lock", ".lock"]


def test_checkpoint_of_a_full_disk_keeps_the_last_one(tmp_path: Path) -> None:
    save(tmp_path / "last.ckpt", {"step": 1})
    before = digest_tree(tmp_path)
    with largest_file(10_000), pytest.raises(AvdataError, match="bytes needed, 10,000 allowed") as caught:
        save(tmp_path / "last.ckpt", {"weights": torch.zeros(100_000)})
    assert caught.value.hint is not None
    assert "--resume" in caught.value.hint
    assert digest_tree(tmp_path) == before


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "--json"], ["verify", "nowhere", "--json"]])
def test_command_fails_if_its_output_cannot_be_written(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["avdata", *words])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            run_command(app)
        assert ended.value.code == 1
        assert sys.stdout is not full
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()
    assert capsys.readouterr().err.startswith("error: ")
