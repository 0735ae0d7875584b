from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from avdata.errors import AvdataError
from avdata.layouts import author_npy
from avdata.layouts.run import export
from avdata.shards.sample import load_sample


def test_export_author_npy_writes_the_samples_of_each_split_in_index_order(
    tmp_path: Path, cremad_set: Path
) -> None:
    report = export(cremad_set, tmp_path / "npy")
    assert report.samples == 14
    for split in ("train", "test"):
        audio, videos, labels = (
            np.load(tmp_path / "npy" / f"{name}_{split}.npy", allow_pickle=False)
            for name in ("audio", "videos", "labels")
        )
        keys = (tmp_path / "npy" / f"keys_{split}.txt").read_text().split()
        assert len(keys) == len(audio) == len(videos) == len(labels) > 1
        for number, key in enumerate(keys):
            sample = load_sample(cremad_set, key)
            assert np.array_equal(audio[number, :, 0], sample.mel.astype(np.float32))
            assert np.array_equal(np.round(videos[number] * 255), sample.frames.transpose(0, 3, 1, 2))
            assert labels[number] == sample.row["label"]


def test_author_npy_arrays_train_a_script_like_the_authors(tmp_path: Path, cremad_set: Path) -> None:
    export(cremad_set, tmp_path)
    audio = torch.from_numpy(np.load(tmp_path / "audio_train.npy")).float()
    video = torch.from_numpy(np.load(tmp_path / "videos_train.npy")).float()
    labels = torch.from_numpy(np.load(tmp_path / "labels_train.npy")).long()
    assert audio.shape[1:] == (4, 1, 128, 128)
    assert video.shape[1:] == (4, 3, 48, 48)
    assert float(video.min()) >= 0
    assert float(video.max()) <= 1
    loss = torch.nn.functional.cross_entropy(torch.zeros(len(labels), 6), labels)
    assert torch.isfinite(loss)


def test_export_to_a_full_disk_raises_and_leaves_no_partial_files(
    tmp_path: Path, cremad_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # A memory map would not raise: the kernel ends the process.
    monkeypatch.setattr(np, "memmap", lambda *_, **__: pytest.fail("export writes through a memory map"))
    monkeypatch.setattr(author_npy, "decode_frames", full)
    with pytest.raises(AvdataError, match="The disk is full"):
        export(cremad_set, tmp_path / "npy")
    assert [path.name for path in (tmp_path / "npy").iterdir()] == [".avdata-export.json"]
