from __future__ import annotations

import io
import logging
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as some
from support.tars import header_offset, overwrite, truncate, write_tar

from avdata.errors import SourceError, UsageError
from avdata.recipe import Clip
from avdata.selection import check_clips
from avdata.sources.tar_source import TarSample, clean_key, open_tars

SAMPLES = {f"c{number}": {"cls": b"1", "mp4": b"m" * 900} for number in range(4)}


def damage(path: Path) -> dict[str, str]:
    return {sample.key: str(sample.damage[0]) for sample in open_tars(path).samples if sample.damage}


def write_names(path: Path, names: Iterable[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"ab"))
    return path


def found(samples: Iterable[TarSample]) -> list[tuple[str, set[str]]]:
    return [(sample.key, set(sample.members)) for sample in samples]


@pytest.mark.filterwarnings("ignore")
def test_samples_have_the_keys_and_extensions_that_webdataset_yields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.mp4", "a.left.wav", "a.JSON", "sub.d/b.mp4", "sub.d/b.cls", "noextension", ".hidden.mp4"]
    write_names(tmp_path / "a.tar", names)
    monkeypatch.chdir(tmp_path)
    stock = list(webdataset.WebDataset("a.tar", shardshuffle=False))
    expected = [
        (sample["__key__"], {name for name in sample if not name.startswith("__")}) for sample in stock
    ]
    assert found(open_tars(tmp_path / "a.tar").samples) == expected


def test_samples_report_the_number_of_indexed_tars(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", SAMPLES)
    told: list[tuple[str, int, int]] = []
    assert len(open_tars(tmp_path, lambda *step: told.append(step)).samples) == 8
    assert told == [("index", number, 2) for number in range(3)]


def test_samples_need_webdataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(ImportError):
        _ = open_tars(tmp_path).samples
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ImportError):
        open_tars(tmp_path / "{a,b}.tar")


def test_samples_join_members_of_a_key_that_are_not_adjacent(tmp_path: Path) -> None:
    write_names(tmp_path / "a.tar", ["./a.mp4", "./b.mp4", "./a.cls", "./b.cls"])
    assert found(open_tars(tmp_path).samples) == [("a", {"mp4", "cls"}), ("b", {"mp4", "cls"})]


def test_samples_mark_a_key_with_two_members_of_one_extension(tmp_path: Path) -> None:
    write_names(tmp_path / "a.tar", ["a.mp4", "b.mp4", "b.MP4", "c.mp4"])
    assert damage(tmp_path) == {"b": "duplicate_key"}


def test_open_tars_expands_patterns_as_webdataset_does(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(3):
            write_tar(tmp_path / split / f"{number:04d}.tar", {})
    write_tar(tmp_path / ".cache" / "0000.tar", {})
    everything = sorted(tmp_path.glob("t*/*.tar"))
    pattern = f"{tmp_path}/{{train,test}}/{{0000..0002}}.tar"
    assert sorted(map(Path, webdataset.shardlists.expand_urls(pattern))) == everything
    for source in (tmp_path, pattern, f"{tmp_path}/{{train,test}}/*.tar"):
        tars = open_tars(source)
        assert (tars.root, list(tars.tars)) == (tmp_path, everything)
    single = open_tars(everything[0])
    assert (single.root, single.tar_name(single.tars[0])) == (tmp_path / "test", "0000.tar")


def test_open_tars_leaves_out_prepared_and_unfinished_datasets(tmp_path: Path) -> None:
    for name in ("a.tar", "done/train/b.tar", "killed/train/c.tar"):
        write_tar(tmp_path / name, {})
    (tmp_path / "done" / "dataset.json").touch()
    (tmp_path / "killed" / ".avdata").mkdir()
    assert open_tars(tmp_path).tars == (tmp_path / "a.tar",)


def test_open_tars_names_missing_tars_and_malformed_patterns(tmp_path: Path) -> None:
    write_tar(tmp_path / "0000.tar", {})
    with pytest.raises(SourceError, match="2 of 3 tars are missing") as caught:
        open_tars(f"{tmp_path}/{{0000..0002}}.tar")
    assert "0001.tar" in str(caught.value.hint)
    for source in (tmp_path / "x.tar", f"{tmp_path}/x{{0..2}}.tar", "pipe:cat x.tar"):
        with pytest.raises(SourceError, match="No tar matches the source"):
            open_tars(source)
    with pytest.raises(UsageError, match="Invalid pattern"):
        open_tars(f"{tmp_path}/{{0000.tar")


def test_open_tars_starts_no_command_for_a_pipe_url(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_tars(f"pipe:touch {tmp_path}/{{a,b}}")
    assert list(tmp_path.iterdir()) == []


def test_truncated_tar_affects_only_the_cut_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    truncate(path, header_offset(path, "c2.mp4") + 800)
    with caplog.at_level(logging.WARNING):
        assert damage(tmp_path) == {"c2": "truncated"}
    assert "Truncated tar a.tar" in caplog.text
    # Stock webdataset reports nothing.
    keys = [sample.key for sample in open_tars(tmp_path).samples]
    assert keys == ["c0", "c1", "c2"]


def test_tar_cut_between_members_affects_only_an_incomplete_clip(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    truncate(path, header_offset(path, "c2.mp4"))
    assert damage(tmp_path) == {"c2": "truncated"}
    write_tar(path, SAMPLES)
    truncate(path, header_offset(path, "c2.cls"))
    assert damage(tmp_path) == {}


@pytest.mark.parametrize("name", ["c1.cls", "c1.mp4"])
def test_damaged_header_affects_only_its_clip(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    overwrite(path, header_offset(path, name), b"\xff" * 20)
    with caplog.at_level(logging.WARNING):
        assert damage(tmp_path) == {"c1": "unreadable"}
    assert "Damaged tar a.tar" in caplog.text


def test_damaged_tar_does_not_affect_clips_of_other_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    path = write_tar(tmp_path / "b.tar", {"d0": {"mp4": b"m" * 900}})
    truncate(path, 1000)
    assert damage(tmp_path) == {"d0": "truncated"}


@given(some.lists(some.text(min_size=1, max_size=120), min_size=1, max_size=5, unique=True))
def test_clean_key_returns_valid_keys(names: list[str]) -> None:
    for name in names:
        clip = Clip(clean_key(name), "a", "g", "train", Path("x"))
        check_clips([clip], ["a"], ["train"])
        assert clean_key(name) == clip.key


def test_clean_key_keeps_plain_keys_and_separates_others() -> None:
    assert clean_key("1001_DFA-x") == "1001_DFA-x"
    assert clean_key("anger/0001") == "anger_0001"
    names = ["你好", "再见", "a b", "a  b", "é", "x" * 90, "x" * 91, "../../etc/passwd", "..", "_"]
    keys = {clean_key(name) for name in names}
    assert len(keys) == len(names)
    check_clips([Clip(key, "a", "g", "train", Path("x")) for key in keys], ["a"], ["train"])
