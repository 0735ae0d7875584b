"""Archives of strangers: all members in place when all are safe and whole, else nothing at all."""

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
            # Of no date: the bytes are the same in every run.
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


class Box:
    """A place to unpack into, surrounded by files that must not change."""

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
    return Box(tmp_path)


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_members_are_unpacked_with_their_checksums(box, kind, write):
    members = box.unpack(write(box.folder / "x", FILES.items()), kind)
    assert read_tree(box.root) == FILES
    assert {one.path: one.checksum for one in members} == {
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
def test_paths_that_lead_elsewhere_are_refused(box, kind, write, name, match):
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
def test_what_is_no_file_in_a_tar_is_refused(box, member):
    box.refuse(write_tar(box.folder / "x", [("good.txt", b"1"), (member, b"")]), "tar.gz", "a link, a device")


def test_writing_through_a_link_in_a_tar_is_refused(box):
    members = [(tar_member("door", tarfile.SYMTYPE, ".."), b""), ("door/victim", b"evil")]
    box.refuse(write_tar(box.folder / "x", members), "tar.gz", "a link")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_what_is_no_file_in_a_zip_is_refused(box, mode):
    info = zipfile.ZipInfo("evil")
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    box.refuse(
        write_zip(box.folder / "x", [("good.txt", b"1"), (info, "../victim")]), "zip", "a link or a device"
    )


def test_an_encrypted_zip_is_refused(box):
    path = write_zip(box.folder / "x", [("a", b"1")])
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    box.refuse(path, "zip", "encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_a_name_that_comes_twice_is_refused(box, kind, write):
    box.refuse(write(box.folder / "x", [("a", b"1"), ("a", b"2")]), kind, "a duplicate")


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_a_bomb_is_refused_by_its_ratio(box, kind, write):
    archive = write(box.folder / "x", [(f"{number}", bytes(1 << 20)) for number in range(8)])
    box.refuse(archive, kind, "beyond the limit", limits=ArchiveLimits(free_bytes=2 << 20))


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_more_members_than_the_limit_are_refused(box, kind, write):
    archive = write(box.folder / "x", [(f"{number}", b"") for number in range(11)])
    box.refuse(archive, kind, "limit of 10 members", limits=ArchiveLimits(members=10))


def test_a_zip_member_that_lies_about_its_size_is_refused(box):
    path = write_zip(box.folder / "x", [("a", bytes(100_000))])
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(mark) + offset
        data[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    box.refuse(path, "zip", "Corrupt|larger than")


def test_a_tar_header_of_gigabytes_is_refused_before_it_fills_the_memory(box, monkeypatch):
    monkeypatch.setattr("avdata.sources.archives._OVERHEAD", 1 << 20)
    header = tar_member("x", tarfile.XHDTYPE)
    header.size = 1 << 32
    with gzip.open(box.folder / "x", "wb", compresslevel=1) as stream:
        stream.write(header.tobuf())
        for _ in range(8):
            stream.write(bytes(1 << 20))
    box.refuse(box.folder / "x", "tar.gz", "bytes outside of files")


def test_gigabytes_after_a_tars_end_are_refused(box, monkeypatch):
    monkeypatch.setattr("avdata.sources.archives._OVERHEAD", 1 << 20)
    write_tar(box.folder / "x", [("a", b"1")])
    with (box.folder / "x").open("ab") as file:
        file.write(gzip.compress(bytes(8 << 20)))
    box.refuse(box.folder / "x", "tar.gz", "bytes outside of files")


@pytest.mark.parametrize(("kind", "write"), [("zip", write_zip), ("tar.gz", write_tar)])
def test_an_archive_cut_short_anywhere_leaves_nothing(box, kind, write):
    path = write(box.folder / "x", FILES.items())
    data = path.read_bytes()
    for length in range(0, len(data) - 1, 97):
        path.write_bytes(data[:length])
        box.refuse(path, kind, "Corrupt or truncated|No files in")


@settings(max_examples=60)
@example(place=3334, bit=0)  # a zip whose directory says that a member begins before the file does
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_wrong_files(tmp_path_factory, place, bit):
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
        # A bit in a name, a date or a mode may go unnoticed; one in a content never does.
        assert sorted(one.checksum for one in members) == sorted(
            "sha256:" + hashlib.sha256(content).hexdigest() for content in FILES.values()
        )


def test_folders_and_modes_of_the_archive_do_not_matter(box):
    root = tar_member("./", tarfile.DIRTYPE)
    suid = tarfile.TarInfo("./run.sh")
    suid.mode = 0o4777
    box.unpack(write_tar(box.folder / "x", [(root, b""), (suid, b"x")]), "tar.gz")
    assert stat.S_IMODE((box.root / "run.sh").stat().st_mode) & 0o7111 == 0


def test_a_run_that_was_killed_goes_on_with_the_members_that_are_not_staged(box, monkeypatch):
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


def test_a_check_that_fails_leaves_nothing_in_place(box):
    def check(staging, members):
        raise SourceError("not what was expected")

    box.refuse(write_zip(box.folder / "x", FILES.items()), "zip", "not what was expected", check=check)


@pytest.fixture
def archived(tiny):
    """The tiny dataset as one tar.gz whose members are listed with their checksums."""
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


def test_an_archives_members_are_held_against_the_table(archived):
    archived.download()
    assert archived.tree() == archived.files
    archived.server.requests.clear()
    assert archived.download().present == 1
    assert archived.server.requests == []


def test_an_archive_with_another_member_than_the_table_says_is_refused(archived):
    listed = {**archived.files, "wav/c0001.wav": b"another"}
    archived.manifest = make_manifest([archived.source], tables={"t": listed})
    with pytest.raises(
        SourceError, match=r"0 files are missing and 1 have another checksum\. First: wav/c0001.wav"
    ):
        archived.download()
    assert archived.tree() == {}


def test_a_limit_on_archives_says_that_all_of_it_is_fetched(archived):
    plan = archived.download(dry_run=True, limit=3)
    assert "downloaded completely" in plan.notes[0]


def test_members_are_proven_by_having_been_unpacked(archived):
    from avdata.sources.checksums import verify_files

    archived.download()
    proven = verify_files(archived.root, make_file_entries(archived.files))
    assert (len(proven.good), proven.hashed) == (12, 0)


def test_an_archive_that_the_user_fetched_is_unpacked_where_a_download_goes(box, cache):
    archive = write_zip(box.folder / "AVE_Dataset.zip", FILES.items())
    root = unpack_archive_file("ave", archive)
    assert root == cache / "sources" / "ave"
    assert read_tree(root) == FILES
    assert archive.exists()
    assert unpack_archive_file("ave", archive) == root
    assert download("ave", dry_run=True).files == ()


def test_another_archive_is_not_taken_for_the_one_that_was_unpacked(box, cache):
    archive = write_zip(box.folder / "AVE_Dataset.zip", FILES.items())
    root = unpack_archive_file("ave", archive)
    write_zip(archive, [(name, b"other " + data) for name, data in FILES.items()])
    with pytest.raises(SourceError, match="another archive"):
        unpack_archive_file("ave", archive)
    assert read_tree(root) == FILES


def test_what_is_no_archive_is_not_unpacked(box):
    (box.folder / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(UsageError, match="Not an archive"):
        unpack_archive_file("ave", box.folder / "x.rar")
