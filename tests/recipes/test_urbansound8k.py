from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from avdata.recipes import urbansound8k as us8k
from avdata.recipes import urbansound8k_av

import avdata
from avdata.errors import SourceError

PAGE = Path(__file__).parents[2] / "docs" / "datasets" / "urbansound8k.md"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return avdata.mock("urbansound8k", tmp_path_factory.mktemp("us8k") / "raw", clips=30)


def facts(root: Path, split_by: str = "fold:10") -> list[tuple[str, str, str]]:
    clips = us8k.clips(root, split_by)
    assert all(clip.video is None and clip.audio is not None and clip.audio.is_file() for clip in clips)
    return [(clip.key, clip.label, clip.split) for clip in clips]


def test_mock_has_exactly_the_clips_and_all_labels_in_all_splits(source: Path) -> None:
    counts = Counter((split, label) for _, label, split in facts(source))
    assert sum(counts.values()) == 30
    assert len(counts) == 3 * 10


@pytest.mark.parametrize("layout", ["zenodo", "kaggle", "upper-case", "flat-with-list"])
def test_clips_are_the_same_in_every_layout(source: Path, tmp_path: Path, layout: str) -> None:
    expected = facts(source)
    copy = shutil.copytree(source, tmp_path / "copy")
    base = copy / "UrbanSound8K"
    if layout == "kaggle":
        for folder in (base / "audio").glob("fold*"):
            folder.rename(copy / folder.name)
        shutil.move(base / "metadata" / "UrbanSound8K.csv", copy)
        shutil.rmtree(base)
    else:
        for path in list(base.rglob("*.wav")):
            if layout == "upper-case":
                path.rename(path.with_suffix(".WAV"))
            elif layout == "flat-with-list":
                path.rename(base / path.name)
    assert facts(copy) == expected


def test_clips_without_list_and_fold_folders_names_the_alternative(source: Path, tmp_path: Path) -> None:
    for path in source.rglob("*.wav"):
        shutil.copy(path, tmp_path)
    with pytest.raises(
        SourceError, match=r"neither a folder fold1 to fold10 nor UrbanSound8K\.csv"
    ) as caught:
        us8k.clips(tmp_path, "fold:10")
    assert "random70" in str(caught.value.hint)
    assert len(us8k.clips(tmp_path, "random70")) == 30


def test_clips_warns_about_a_sound_in_two_folders(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    path = next(copy.rglob("*.wav"))
    shutil.copy(path, copy)
    assert facts(copy) == facts(source)
    assert "is in two folders" in caplog.text


def test_clips_names_what_a_folder_without_sounds_lacks(tmp_path: Path) -> None:
    (tmp_path / "UrbanSound8K.csv").write_text("slice_file_name,fold\n")
    with pytest.raises(SourceError, match=r"no files like .*; UrbanSound8K\.csv is there") as caught:
        us8k.clips(tmp_path, "fold:10")
    assert "avdata download urbansound8k" in str(caught.value.hint)


def test_urbansound8k_av_refers_to_the_recipe_of_sounds_if_images_are_missing(source: Path) -> None:
    with pytest.raises(SourceError, match="UrbanSound8K without images") as caught:
        urbansound8k_av.clips(source, "fold:10")
    assert "avdata prepare urbansound8k" in str(caught.value.hint)
    assert "lingyueguo/urbansound8k-av" in str(caught.value.hint)


def test_parquet_files_are_converted_by_the_documented_script(source: Path, tmp_path: Path) -> None:
    rows = [
        {
            "audio": {"bytes": path.read_bytes(), "path": path.name},
            "slice_file_name": path.name, "fold": int(path.parent.name.removeprefix("fold")),
        }
        for path in sorted(source.rglob("*.wav"))
    ]  # fmt: skip
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(SourceError, match=r"Parquet files .*train-00000-of-00001") as caught:
        us8k.clips(tmp_path / "parquet", "fold:10")
    assert PAGE.name in str(caught.value.hint)
    script = re.search(r"```python title=.*?\n(.*?)```", PAGE.read_text(), re.S)
    assert script is not None
    subprocess.run([sys.executable, "-c", script[1]], cwd=tmp_path, check=True, timeout=120)
    assert facts(tmp_path / "hf" / "audio") == facts(source)
