"""A prepared set in the layouts that other people's training scripts read.

author-npy is that of the SNNergy author's public code (muhammadessam/linear_attention_res_learning):

    audio_SPLIT.npy    float32 [N, T, 1, F, L]
    videos_SPLIT.npy   float32 [N, T, C, H, W], 0 to 1
    labels_SPLIT.npy   int64 [N]

for SPLIT in train, val and test; its loader takes the arrays as they are and calls `.float()`. It says
nothing of colors and scale: the values are those of the set, frames divided by 255. `keys_SPLIT.txt` names
the samples, one a line, in the order of the arrays, which is that of the index.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from avdata.errors import AvdataError, UsageError, did_you_mean
from avdata.progress import Progress
from avdata.shards.reader import decode_frames, decode_mel, read_index, read_info, read_members
from avdata.storage.atomic import atomic_rename, atomic_write, fsync, write_errors


def export(
    dataset: str | Path,
    output: str | Path,
    layout: str = "author-npy",
    progress: Progress = lambda stage, done, total: None,
) -> list[Path]:
    """Write a prepared set of this machine in another layout; a sample at a time is in memory.

    Args:
        dataset: the prepared set.
        output: folder to write; files of the same name are replaced, each at once when it is whole.
        layout: one of `EXPORT_LAYOUTS`.
        progress: called with the stage `export`, and samples done and in all.

    Returns:
        The files written.

    Raises:
        UsageError: the layout is unknown.
        AvdataError: the set cannot be read, or the folder cannot be written.
    """
    if layout not in EXPORT_LAYOUTS:
        msg = f"there is no layout {layout!r}"
        raise UsageError(msg, hint=did_you_mean(layout, list(EXPORT_LAYOUTS)))
    return EXPORT_LAYOUTS[layout](Path(dataset), Path(output), progress)


def _author_npy(root: Path, out: Path, progress: Progress) -> list[Path]:
    info, index = read_info(root), read_index(root).to_pylist()
    steps, height, width, channels = info["shape"]["frames"]
    _, bins, columns = info["shape"]["mel"]
    written: list[Path] = []
    done = 0
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for split in info["splits"]:
            rows = [row for row in index if row["split"] == split]
            heard, seen = (len(rows), steps, 1, bins, columns), (len(rows), steps, channels, height, width)
            with (
                _Array(out / f"audio_{split}.npy", heard, np.float32) as audio,
                _Array(out / f"videos_{split}.npy", seen, np.float32) as video,
                _Array(out / f"labels_{split}.npy", (len(rows),), np.int64) as labels,
            ):
                for row in rows:
                    members = _members(root, row["shard"], row["offset"], row["nbytes"])
                    audio.add(decode_mel(members)[:, None])
                    frames = decode_frames(members, steps)
                    video.add(frames.transpose(0, 3, 1, 2) / np.float32(255))
                    labels.add(np.int64(row["label"]))
                    done += 1
                    progress("export", done, len(index))
                written += [array.finish() for array in (audio, video, labels)]
            keys = out / f"keys_{split}.txt"
            atomic_write(keys, "".join(f"{row['key']}\n" for row in rows).encode())
            written.append(keys)
    return written


EXPORT_LAYOUTS: dict[str, Callable[[Path, Path, Progress], list[Path]]] = {"author-npy": _author_npy}


class _Array:
    """An .npy that is written beside its final name, value after value, and gets that when it is whole.

    Not through a memory map: where the disk is full, that one ends the process by a signal.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.{os.getpid()}.part")
        self._dtype = np.dtype(dtype)
        self._stream = self._part.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def add(self, value: np.ndarray | np.generic) -> None:
        self._stream.write(np.ascontiguousarray(value, self._dtype).data)

    def finish(self) -> Path:
        self._stream.flush()
        fsync(self._stream.fileno())
        atomic_rename(self._part, self.path)
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What a full disk did not take is tried again as it is closed.
        with suppress(OSError):
            self._stream.close()
        self._part.unlink(missing_ok=True)


def _members(root: Path, shard: str, offset: int, nbytes: int) -> dict[str, memoryview]:
    try:
        with (root / shard).open("rb") as stream:
            stream.seek(offset)
            return read_members(stream.read(nbytes))
    except OSError as error:
        msg = f"{root / shard} cannot be read ({error.strerror})"
        raise AvdataError(msg, hint="avdata verify lists all that is wrong with the set") from error
