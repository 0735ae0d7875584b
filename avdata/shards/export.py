"""Export of a prepared dataset to the file layouts of other training scripts.

A layout is one function and its row in `EXPORT_LAYOUTS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from avdata.errors import UsageError, did_you_mean
from avdata.progress import Progress
from avdata.shards.reader import decode_frames, decode_mel, read_index, read_info, read_members
from avdata.shards.sample import read_sample_bytes
from avdata.storage.atomic import atomic_rename, atomic_write, fsync, open_partial, write_errors

Advance = Callable[[], None]

ExportFunction = Callable[[Path, Path, Advance], list[Path]]


def export_author_npy(root: Path, output: Path, advance: Advance) -> list[Path]:
    """Write the arrays that the SNNergy author's public code reads, per split.

    The code is that of muhammadessam/linear_attention_res_learning. Files:

        audio_SPLIT.npy    float32 [N, T, 1, F, L]
        videos_SPLIT.npy   float32 [N, T, C, H, W], 0 to 1
        labels_SPLIT.npy   int64 [N]
        keys_SPLIT.txt     sample keys, one per line

    SPLIT is train, val or test. Samples are in the order of the index. The author's loader only calls
    `.float()` and defines neither colors nor scale, so the arrays hold the dataset's values, with frames
    divided by 255.

    Raises:
        UsageError: the dataset has no frames.
    """
    info, index = read_info(root), read_index(root).to_pylist()
    if info["shape"]["frames"] is None:
        msg = f"Layout author-npy requires frames, and the dataset of audio {root} has none."
        raise UsageError(msg, hint="Read the dataset with avdata.open.")
    written: list[Path] = []
    for split in info["splits"]:
        rows = [row for row in index if row["split"] == split]
        written += _write_split_arrays(root, output, split, info["shape"], rows, advance)
        keys_path = output / f"keys_{split}.txt"
        atomic_write(keys_path, "".join(f"{row['key']}\n" for row in rows).encode())
        written.append(keys_path)
    return written


EXPORT_LAYOUTS: dict[str, ExportFunction] = {"author-npy": export_author_npy}

DEFAULT_LAYOUT = next(iter(EXPORT_LAYOUTS))


def export(
    dataset: str | Path,
    output: str | Path,
    layout: str = DEFAULT_LAYOUT,
    progress: Progress = lambda stage, done, total: None,
) -> list[Path]:
    """Export a prepared dataset to another file layout.

    Memory use is bounded: one sample is decoded at a time.

    Args:
        dataset: folder of the prepared dataset.
        output: folder to write. Existing files of the same name are replaced atomically.
        layout: one of `EXPORT_LAYOUTS`.
        progress: called with ("export", done, total), in samples.

    Returns:
        Paths of the written files.

    Raises:
        UsageError: the layout is unknown.
        AvdataError: the dataset cannot be read, or the folder cannot be written.
    """
    if layout not in EXPORT_LAYOUTS:
        msg = f"Unknown export layout {layout!r}."
        raise UsageError(msg, hint=did_you_mean(layout, list(EXPORT_LAYOUTS)))
    root, folder = Path(dataset), Path(output)
    total = sum(split["samples"] for split in read_info(root)["splits"].values())
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("export", done, total)

    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return EXPORT_LAYOUTS[layout](root, folder, advance)


def _write_split_arrays(
    root: Path,
    output: Path,
    split: str,
    shape: Mapping[str, Sequence[int]],
    rows: Sequence[Mapping[str, Any]],
    advance: Advance,
) -> Iterator[Path]:
    steps, height, width, channels = shape["frames"]
    _, bands, columns = shape["mel"]
    audio_shape = (len(rows), steps, 1, bands, columns)
    video_shape = (len(rows), steps, channels, height, width)
    with (
        _NpyWriter(output / f"audio_{split}.npy", audio_shape, np.float32) as audio,
        _NpyWriter(output / f"videos_{split}.npy", video_shape, np.float32) as video,
        _NpyWriter(output / f"labels_{split}.npy", (len(rows),), np.int64) as labels,
    ):
        for row in rows:
            members = read_members(read_sample_bytes(root, row))
            frames = decode_frames(members, steps)
            audio.write(decode_mel(members)[:, None])
            video.write(frames.transpose(0, 3, 1, 2) / np.float32(255))
            labels.write(np.int64(row["label"]))
            advance()
        for array in (audio, video, labels):
            yield array.commit()


class _NpyWriter:
    """Sequential writer of an .npy file, which gets its final name on `commit`.

    It does not use a memory map: on a full disk, a memory map ends the process with a signal.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        self.path = path
        self._partial_path = path.with_name(f"{path.name}.{os.getpid()}.part")
        self._dtype = np.dtype(dtype)
        self._stream = open_partial(self._partial_path)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def write(self, value: np.ndarray | np.generic) -> None:
        self._stream.write(np.ascontiguousarray(value, self._dtype).data)

    def commit(self) -> Path:
        self._stream.flush()
        fsync(self._stream.fileno())
        atomic_rename(self._partial_path, self.path)
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # On a full disk, close() retries the failed flush and raises again.
        with suppress(OSError):
            self._stream.close()
        self._partial_path.unlink(missing_ok=True)
