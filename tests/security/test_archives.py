"""Archives from outside: damaged members, names that hit other files, and sizes; one sentence each."""

from __future__ import annotations

import gzip
import io
import re
import stat
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import avdata
from avdata.cli.console import run_command
from avdata.cli.main import app
from avdata.errors import SourceError
from avdata.sources.archives import ArchiveKind, ArchiveLimits, ExtractedFile, extract_archive

Member = tuple[str, bytes]

METHODS = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA, "deflate": zipfile.ZIP_DEFLATED}

CONTENT = bytes(range(256)) * 40


def write_zip(path: Path, members: Sequence[Member], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return path


def write_tar(path: Path, members: Sequence[Member]) -> Path:
    with gzip.GzipFile(path, "wb", 1) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o6777
            archive.addfile(info, io.BytesIO(content))
    return path


BOTH = pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])


def extract(archive: Path, kind: ArchiveKind, limits: ArchiveLimits | None = None) -> list[ExtractedFile]:
    into = archive.parent / "into"
    return extract_archive(archive, kind, into, staging=archive.parent / "staging", limits=limits)


@BOTH
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a", "a.part"], "named like the partial file of another member"),
        (["a.part", "a"], "named like the partial file of another member"),
        (["b/a.part", "b/a"], "named like the partial file of another member"),
        ([".git/config"], "in a reserved folder"),
        (["b/.GIT/hooks/pre-commit"], "in a reserved folder"),
        ([".avdata/lock"], "in a reserved folder"),
        ([".git /config"], "in a reserved folder"),
        (["GIT~1/config"], "in a reserved folder"),
        ([".g\u200cit/config"], "in a reserved folder"),
        (["a", "a/b"], "both a file and a folder"),
        (["a/b/c", "a/b"], "both a file and a folder"),
        (["a", "./a"], "a duplicate"),
    ],
)
def test_extract_archive_rejects_names_that_hit_other_files(
    kind: ArchiveKind, write: type, names: list[str], reason: str, tmp_path: Path
) -> None:
    archive = write(tmp_path / "x", [(name, b"1") for name in names])
    with pytest.raises(SourceError, match=rf"member {re.escape(repr(names[-1]))} is {reason}\.$"):
        extract(archive, kind)
    assert not (tmp_path / "into").exists()


@BOTH
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n" * 256, "too long a path"),
        ("n/" * 1500 + "n", "too long a path"),
        ("é" * 128, "too long a path"),
        ("\x1b[31m.mp4", "not a safe path"),
        ("a\nb", "not a safe path"),
        ("", "not a safe path"),
    ],
)
def test_extract_archive_rejects_names_that_no_folder_can_hold(
    kind: ArchiveKind, write: type, name: str, reason: str, tmp_path: Path
) -> None:
    archive = write(tmp_path / "x", [(name, b"1")])
    with pytest.raises(SourceError, match=rf"^Unsafe archive .* is {reason}\.$") as caught:
        extract(archive, kind)
    assert len(caught.value.message) < 500


@BOTH
def test_extract_archive_rejects_names_that_are_one_file(
    kind: ArchiveKind, write: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows, where the second member would replace the first."""
    archive = write(tmp_path / "x", [("é/A.mp4", b"1"), ("e\u0301/a.MP4", b"2")])
    assert len(extract(archive, kind)) == 2
    monkeypatch.setattr(Path, "samefile", lambda path, other: True)
    with pytest.raises(SourceError, match="a duplicate of another member on this file system"):
        extract(archive, kind)


@BOTH
def test_extract_archive_keeps_unusual_names(kind: ArchiveKind, write: type, tmp_path: Path) -> None:
    names = ["-12.mp4", "_a.mp4", "a b.mp4", "été.mp4", "\u05d0\u202egpj.mp4", ".hidden", "x.part", "$(id)"]
    members = extract(write(tmp_path / "x", [(name, name.encode()) for name in names]), kind)
    assert [member.path for member in members] == names
    for name in names:
        path = tmp_path / "into" / name
        assert path.read_bytes() == name.encode()
        assert stat.S_IMODE(path.stat().st_mode) & 0o7111 == 0


@given(st.sampled_from(sorted(METHODS)), st.integers(0, 20_000), st.integers(1, 255))
def test_extract_archive_explains_damaged_members(
    tmp_path_factory: pytest.TempPathFactory, method: str, place: int, change: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    archive = write_zip(folder / "x", [("a", CONTENT), ("b", CONTENT[::-1])], METHODS[method])
    data = bytearray(archive.read_bytes())
    data[place % len(data)] ^= change
    archive.write_bytes(data)
    try:
        members = extract(archive, "zip")
    except SourceError:
        assert not (folder / "into").exists()
    else:
        # Nothing detects a change in a date or mode.
        assert [member.bytes for member in members] == [len(CONTENT)] * 2


@pytest.mark.parametrize("method", ["bzip2", "lzma"])
def test_extract_archive_names_the_archive_of_a_damaged_member(method: str, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x", [("a", CONTENT)], METHODS[method])
    data = bytearray(archive.read_bytes())
    data[60:90] = bytes(30)
    archive.write_bytes(data)
    with pytest.raises(SourceError, match=f"Corrupt or truncated archive {archive}: "):
        extract(archive, "zip")


@BOTH
def test_extract_archive_limits_members_without_reading_them(
    kind: ArchiveKind, write: type, tmp_path: Path
) -> None:
    archive = write(tmp_path / "x", [(f"{number}", b"") for number in range(1001)])
    with pytest.raises(SourceError, match="beyond the limit of 1,000 members"):
        extract(archive, kind, ArchiveLimits(members=1000))


@pytest.mark.exhaustive
@BOTH
def test_extract_archive_extracts_a_hundred_thousand_members(
    kind: ArchiveKind, write: type, tmp_path: Path
) -> None:
    names = [f"{number % 100}/{number}" for number in range(100_000)]
    assert len(extract(write(tmp_path / "x", [(name, b"1") for name in names]), kind)) == 100_000


def test_prepare_reads_the_archive_of_an_own_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVDATA_CACHE", str(tmp_path / "cache"))
    recipe = Path(__file__).parents[2] / "docs" / "custom_recipe.py"
    raw = avdata.mock(recipe, tmp_path / "raw", clips=2)
    files = [path for path in raw.rglob("*") if path.is_file() and path.name != "manifest.json"]
    members = [(path.relative_to(raw).as_posix(), path.read_bytes()) for path in files]
    archive = write_zip(tmp_path / "raw.zip", members)
    words = ["prepare", recipe, "--source", archive, "--output", tmp_path / "out", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["avdata", *map(str, words), "--no-checksums"])
    with pytest.raises(SystemExit) as ended:
        run_command(app)
    assert ended.value.code == 0
    assert "2 samples in" in capsys.readouterr().out
