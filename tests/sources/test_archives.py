"""Untrusted archives: all members are extracted if all are safe and complete, else none."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import stat
import struct
import tarfile
import zipfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tiny_dataset import make_file_entries, make_manifest, read_tree

from avdata.errors import SourceError, UsageError
from avdata.manifest import Source
from avdata.sources.archives import ArchiveLimits, extract_archive
from avdata.sources.download import download
from avdata.sources.source_dir import unpack_archive_file

FILES = {"AVE/a.mp4": b"a" * 5000, "AVE/-12.mp4": random.Random(0).randbytes(3000), "readme.txt": b""}


def write_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            # No date, so that the bytes are the same in every run.
            info = zipfile.ZipInfo(name) if isinstance(name, str) else name
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def write_tar(path, members):
    with (
        gzip.GzipFile(path, "wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


class Sandbox:
    """A target folder among files that must not change."""

    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "outer" / "root"
        self.root.mkdir(parents=True)
        (folder / "outer" / "victim").write_bytes(b"untouched")
        self.staging = self.root / ".avdata" / "staging"

    def unpack(self, archive, kind, **options):
        return extract_archive(archive, kind, self.root, staging=self.staging, **options)

    def refuse(self, archive, kind, match, **options):
        with pytest.raises(SourceError, match=match):
            self.unpack(archive, kind, **options)
        assert read_tree(self.root) == {}
        outside = {path.name for path in self.folder.iterdir()} | {
            path.name for path in (self.folder / "outer").iterdir()
        }
        assert outside <= {"outer", "victim", "root", archive.name, "cache"}
        assert (self.folder / "outer" / "victim").read_bytes() == b"untouched"


@pytest.fixture
def box(tmp_path):
    return Sandbox(tmp_path)


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_extract_archive_returns_the_checksums_of_members(box, kind, write):
    members = box.unpack(write(box.folder / "x", FILES.items()), kind)
    assert read_tree(box.root) == FILES
    assert {member.path: member.checksum for member in members} == {
        name: "sha256:" + hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    assert not box.staging.exists()


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../victim", "outside"),
        ("a/../../victim", "outside"),
        ("/tmp/evil", "outside"),
        ("C:/evil", "not a safe path"),
        ("..\\victim", "not a safe path"),
        ("a\\..\\..\\victim", "not a safe path"),
    ],
)
def test_extract_archive_rejects_paths_outside_the_folder(box, kind, write, name, match):
    box.refuse(write(box.folder / "x", [("good.txt", b"1"), (name, b"evil")]), kind, match)


@pytest.mark.parametrize(
    "member",
    [
        tar_member("evil", tarfile.SYMTYPE, "../victim"),
        tar_member("evil", tarfile.SYMTYPE, "good.txt"),
        tar_member("evil", tarfile.LNKTYPE, "good.txt"),
        tar_member("evil", tarfile.CHRTYPE),
        tar_member("evil", tarfile.BLKTYPE),
        tar_member("evil", tarfile.FIFOTYPE),
    ],
    ids=["link out", "link in", "hard link", "character device", "block device", "fifo"],
)
def test_extract_archive_rejects_tar_members_that_are_not_files(box, member):
    box.refuse(write_tar(box.folder / "x", [("good.txt", b"1"), (member, b"")]), "tar.gz", "a link, a device")


def test_extract_archive_does_not_write_through_tar_links(box):
    members = [(tar_member("door", tarfile.SYMTYPE, ".."), b""), ("door/victim", b"evil")]
    box.refuse(write_tar(box.folder / "x", members), "tar.gz", "a link")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_extract_archive_rejects_zip_members_that_are_not_files(box, mode):
    info = zipfile.ZipInfo("evil")
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    box.refuse(
        write_zip(box.folder / "x", [("good.txt", b"1"), (info, "../victim")]), "zip", "a link or a device"
    )


def test_extract_archive_rejects_an_encrypted_zip(box):
    path = write_zip(box.folder / "x", [("a", b"1")])
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    box.refuse(path, "zip", "encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_extract_archive_rejects_duplicate_names(box, kind, write):
    box.refuse(write(box.folder / "x", [("a", b"1"), ("a", b"2")]), kind, "a duplicate")


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_extract_archive_rejects_a_bomb_by_its_ratio(box, kind, write):
    archive = write(box.folder / "x", [(f"{number}", bytes(1 << 20)) for number in range(8)])
    box.refuse(archive, kind, "beyond the limit", limits=ArchiveLimits(free_bytes=2 << 20))


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_extract_archive_limits_the_number_of_members(box, kind, write):
    archive = write(box.folder / "x", [(f"{number}", b"") for number in range(11)])
    box.refuse(archive, kind, "limit of 10 members", limits=ArchiveLimits(members=10))


def test_extract_archive_rejects_a_zip_member_with_a_false_size(box):
    path = write_zip(box.folder / "x", [("a", bytes(100_000))])
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(mark) + offset
        data[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    box.refuse(path, "zip", "Corrupt|larger than")


def test_extract_archive_rejects_a_huge_tar_header_before_reading_it(box, monkeypatch):
    monkeypatch.setattr("avdata.sources.archives._OVERHEAD", 1 << 20)
    header = tar_member("x", tarfile.XHDTYPE)
    header.size = 1 << 32
    with gzip.open(box.folder / "x", "wb", compresslevel=1) as stream:
        stream.write(header.tobuf())
        for _ in range(8):
            stream.write(bytes(1 << 20))
    box.refuse(box.folder / "x", "tar.gz", "bytes outside of files")


def test_extract_archive_rejects_gigabytes_after_the_end_of_a_tar(box, monkeypatch):
    monkeypatch.setattr("avdata.sources.archives._OVERHEAD", 1 << 20)
    write_tar(box.folder / "x", [("a", b"1")])
    with (box.folder / "x").open("ab") as file:
        file.write(gzip.compress(bytes(8 << 20)))
    box.refuse(box.folder / "x", "tar.gz", "bytes outside of files")


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_extract_archive_leaves_nothing_of_a_truncated_archive(box, kind, write):
    path = write(box.folder / "x", FILES.items())
    data = path.read_bytes()
    for length in range(0, len(data) - 1, 97):
        path.write_bytes(data[:length])
        box.refuse(path, kind, "Corrupt or truncated|No files in")


@settings(max_examples=60)
@example(place=3334, bit=0)  # a zip whose directory has a member offset before the start of the file
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_extract_archive_never_writes_wrong_files_after_a_flipped_bit(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("flip")
    for kind, write in (("zip", write_zip), ("tar.gz", write_tar)):
        path = write(folder / "x", FILES.items())
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= 1 << bit
        path.write_bytes(data)
        try:
            members = extract_archive(path, kind, folder / kind, staging=folder / "s")
        except SourceError:
            assert not (folder / kind).exists()
            continue
        # A flipped bit in a name, date or mode may be undetected; one in the content never is.
        assert sorted(member.checksum for member in members) == sorted(
            "sha256:" + hashlib.sha256(content).hexdigest() for content in FILES.values()
        )


def test_extract_archive_ignores_folders_and_modes(box):
    root = tar_member("./", tarfile.DIRTYPE)
    suid = tarfile.TarInfo("./run.sh")
    suid.mode = 0o4777
    box.unpack(write_tar(box.folder / "x", [(root, b""), (suid, b"x")]), "tar.gz")
    assert stat.S_IMODE((box.root / "run.sh").stat().st_mode) & 0o7111 == 0


def test_extract_archive_resumes_with_the_members_not_staged(box, monkeypatch):
    archive = write_zip(box.folder / "x", FILES.items())
    (box.staging / "AVE").mkdir(parents=True)
    (box.staging / "AVE/a.mp4").write_bytes(FILES["AVE/a.mp4"])
    (box.staging / "AVE/-12.mp4").write_bytes(bytes(3000))
    (box.staging / "readme.txt.part").write_bytes(b"half")
    opened = []
    monkeypatch.setattr(
        "avdata.sources.archives._Writer._copy",
        lambda self, entry, content, target, copy=extract_archive.__globals__["_Writer"]._copy: (
            opened.append(entry.name),
            copy(self, entry, content, target),
        )[1],
    )
    box.unpack(archive, "zip")
    assert read_tree(box.root) == FILES
    assert opened == ["AVE/-12.mp4", "readme.txt"]


def test_extract_archive_leaves_nothing_after_a_failed_check(box):
    def check(staging, members):
        raise SourceError("not what was expected")

    box.refuse(write_zip(box.folder / "x", FILES.items()), "zip", "not what was expected", check=check)


@pytest.fixture
def archived(tiny):
    """The tiny dataset as one tar.gz with a table of its members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in tiny.files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    tiny.blob = buffer.getvalue()
    tiny.server.files = {"/all.tar.gz": tiny.blob}
    tiny.source = Source(
        name="all",
        urls=(tiny.server.url + "/all.tar.gz",),
        unpack="tar.gz",
        table="t",
        checksum="md5:" + hashlib.md5(tiny.blob).hexdigest(),
        bytes=len(tiny.blob),
    )
    tiny.manifest = make_manifest([tiny.source], tables={"t": tiny.files})
    return tiny


def test_download_verifies_archive_members_against_the_table(archived):
    archived.download()
    assert archived.tree() == archived.files
    archived.server.requests.clear()
    assert archived.download().present == 1
    assert archived.server.requests == []


def test_download_rejects_an_archive_that_differs_from_the_table(archived):
    listed = {**archived.files, "wav/c0001.wav": b"another"}
    archived.manifest = make_manifest([archived.source], tables={"t": listed})
    with pytest.raises(
        SourceError, match=r"0 files are missing and 1 have another checksum\. First: wav/c0001.wav"
    ):
        archived.download()
    assert archived.tree() == {}


def test_download_plan_notes_that_a_limit_fetches_complete_archives(archived):
    plan = archived.download(dry_run=True, limit=3)
    assert "downloaded completely" in plan.notes[0]


def test_verify_files_uses_the_checksums_of_extraction(archived):
    from avdata.sources.checksums import verify_files

    archived.download()
    result = verify_files(archived.root, make_file_entries(archived.files))
    assert (len(result.good), result.hashed) == (12, 0)


def test_unpack_archive_file_extracts_into_the_source_folder(box, cache):
    archive = write_zip(box.folder / "AVE_Dataset.zip", FILES.items())
    root = unpack_archive_file("ave", archive)
    assert root == cache / "sources" / "ave"
    assert read_tree(root) == FILES
    assert archive.exists()
    assert unpack_archive_file("ave", archive) == root
    assert download("ave", dry_run=True).files == ()


def test_unpack_archive_file_rejects_another_archive(box, cache):
    archive = write_zip(box.folder / "AVE_Dataset.zip", FILES.items())
    root = unpack_archive_file("ave", archive)
    write_zip(archive, [(name, b"other " + data) for name, data in FILES.items()])
    with pytest.raises(SourceError, match="another archive"):
        unpack_archive_file("ave", archive)
    assert read_tree(root) == FILES


def test_unpack_archive_file_rejects_other_files(box):
    (box.folder / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(UsageError, match="Not an archive"):
        unpack_archive_file("ave", box.folder / "x.rar")
