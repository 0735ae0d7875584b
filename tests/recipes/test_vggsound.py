from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from avdata.recipes import vggsound
from support.tars import write_tar

import avdata
from avdata.errors import SourceError
from avdata.manifest import load_manifest

ROWS = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
--9O4XZOge4,30,"female speech, woman speaking",train
"""

LABELS_SHA256 = "a805a53e04dfc6115607fc0e783c2a4f4208ac017dc995b0fde974fbfc3f7374"
"""Of the first column of the authors' data/stat.csv, sorted."""


def write_copy(root: Path, *videos: str, rows: str = ROWS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "vggsound.csv").write_text(rows)
    for video in videos:
        (root / video).parent.mkdir(parents=True, exist_ok=True)
        (root / video).write_bytes(b"x")
    return root


def test_labels_and_counts_are_those_of_the_authors() -> None:
    assert len(vggsound.LABELS) == len(set(vggsound.LABELS)) == 309
    assert hashlib.sha256("\n".join(vggsound.LABELS).encode()).hexdigest() == LABELS_SHA256
    table = Path(avdata.__file__).parents[1] / "manifests" / "vggsound.labels.tsv"
    counts = [int(line.split("\t")[1]) for line in table.read_text().splitlines()[1:]]
    manifest = load_manifest("vggsound")
    assert sum(counts) == manifest.expected["clips"] == 199_176
    assert manifest.expected["test"] == 15_446
    assert manifest.license.publish == "no"


def test_clips_lists_every_row_whether_or_not_its_video_exists(tmp_path: Path) -> None:
    clips = vggsound.clips(write_copy(tmp_path, "video/--0PQM4-hqg_000030.mp4"), "official")
    assert [(clip.key, clip.label, clip.split == "test") for clip in clips] == [
        ("vgg----g-f_I2yQ_000001", "people marching", True),
        ("vgg---0PQM4-hqg_000030", "waterfall burbling", False),
        ("vgg---9O4XZOge4_000030", "female speech, woman speaking", False),
    ]
    assert [clip.video.is_file() for clip in clips if clip.video] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("---g-f_I2yQ_000001", ("---g-f_I2yQ", 1)),
        ("---g-f_I2yQ_1", ("---g-f_I2yQ", 1)),
        ("---g-f_I2yQ_1_11", ("---g-f_I2yQ", 1)),
        ("---g-f_I2yQ_1000_11000", ("---g-f_I2yQ", 1)),
        ("---g-f_I2yQ", None),
        ("g-f_I2yQ_000001", None),
    ],
)
def test_parse_stem_reads_the_names_of_copies(name: str, clip: tuple[str, int] | None) -> None:
    assert vggsound.parse_stem(name) == clip


@pytest.mark.parametrize(
    "row",
    [
        "--0PQM4-hqg,30,waterfall burblin,train",
        "--0PQM4-hqg,30,waterfall burbling,val",
        "--0PQM4-hqg,x,waterfall burbling,train",
        "--0PQM4-hqg,3_4,waterfall burbling,train",
        "../../../xx,30,waterfall burbling,train",
        "--0PQM4-hqg,30,waterfall burbling",
        "--9O4XZOge4,30,waterfall burbling,train",
    ],
)
def test_parse_rows_names_the_line_of_an_invalid_or_repeated_row(row: str) -> None:
    with pytest.raises(SourceError, match=r"(Invalid row|Repeated clip) in it\.csv, line 4"):
        vggsound.parse_rows(iter([*ROWS.splitlines(keepends=True), row]), "it.csv")


def test_validation_has_a_twentieth_of_the_videos_and_divides_none() -> None:
    rows = [vggsound.Row(f"{number:011d}", start, "train horning", "train") for number in range(4000)
            for start in (0, 30)]  # fmt: skip
    splits = {(row.video, vggsound.split_of(row)) for row in rows}
    assert len(splits) == 4000
    assert Counter(split for _, split in splits)["val"] / 4000 == pytest.approx(0.05, abs=0.01)


def test_clips_of_tars_are_those_of_the_folder(tmp_path: Path, bad_mock: Callable[[str], Path]) -> None:
    source = bad_mock("vggsound")
    videos = sorted(source.glob("video/*.mp4"))
    tars = tmp_path / "tars"
    for number in range(2):
        members = {path.stem: {"mp4": path.read_bytes()} for path in videos[number::2]}
        write_tar(tars / f"{number:04d}.tar", members)
    (tars / "vggsound.csv").write_bytes((source / "vggsound.csv").read_bytes())
    plans = [avdata.plan("vggsound", source=folder, checksums=False) for folder in (source, tars)]
    assert plans[0].counts() == plans[1].counts()
    assert [file.sha256 for file in plans[0].files] == [file.sha256 for file in plans[1].files]
    lost = Counter(clip.reason for clip in plans[1].quarantined)
    assert lost == {"missing_video": 2}


def test_clips_names_what_a_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no list of VGGSound") as caught:
        vggsound.clips(tmp_path, "official")
    assert "https://raw.githubusercontent.com/hche11/VGGSound/" in str(caught.value.hint)
    write_copy(tmp_path)
    with pytest.raises(SourceError, match="the list of VGGSound and no videos"):
        vggsound.clips(tmp_path, "official")
    (tmp_path / "vggsound_00.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        vggsound.clips(tmp_path, "official")
    assert "Unpack" in str(caught.value.hint)


def test_mock_repeats_its_media_beyond_32_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, scene: object, **_: object) -> None:
        path.write_text(path.name)

    monkeypatch.setattr("avdata.recipes.vggsound_mock.write_av", write)
    source = avdata.mock("vggsound", tmp_path / "raw", clips=100)
    assert len({path.read_bytes() for path in source.glob("video/*.mp4")}) == 32
    assert len(list(source.glob("video/*.mp4"))) == 100
