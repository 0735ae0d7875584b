"""Tars of clips, written with webdataset, and their defects."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import webdataset

from avdata.testing import Scene, write_av

BLOCK = tarfile.BLOCKSIZE


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Write samples by key; the members of each are in alphabetical order of their extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        writer = webdataset.TarWriter(stream, encoder=False, mtime=0)
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
        writer.close()
    return path


def header_offset(path: Path, name: str) -> int:
    """Return the byte at which the header of a member starts."""
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(size)


@cache
def clip_bytes(seed: int = 0, suffix: str = ".mp4") -> bytes:
    """Return a short video whose flash and beep are at 0.4 s."""
    with TemporaryDirectory() as folder:
        path = Path(folder, f"clip{suffix}")
        scene = Scene(seconds=1.0, flashes=(0.4,), beeps=(0.4,), seed=seed, size=(64, 48), rate=16_000)
        write_av(path, scene, vcodec="mpeg4", acodec="aac")
        return path.read_bytes()
