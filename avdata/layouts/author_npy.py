"""Layout of the SNNergy author's public code, muhammadessam/linear_attention_res_learning.

    audio_SPLIT.npy    float32 [N, T, 1, F, L]
    videos_SPLIT.npy   float32 [N, T, C, H, W], 0 to 1
    labels_SPLIT.npy   int64 [N]
    keys_SPLIT.txt     sample keys, one per line

SPLIT is train, val or test. Samples are in the order of the index. The author's loader only calls `.float()`
and defines neither colors nor scale, so the arrays hold the dataset's values, with frames divided by 255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from avdata.layouts.base import NO_SETTINGS, ExportJob
from avdata.shards.members import decode_frames, decode_mel, read_members
from avdata.shards.sample import read_sample_bytes
from avdata.storage.atomic import atomic_rename, check_space, fsync, open_partial, part_path, write_errors


class AuthorNpy:
    """One array per split of spectrograms, of frames and of labels."""

    readers = "muhammadessam/linear_attention_res_learning"
    preset = "snnergy"
    settings = NO_SETTINGS

    def check(self, job: ExportJob) -> None:
        """Require frames."""
        job.check_media(waveform=False)

    def notes(self, job: ExportJob) -> list[str]:
        """Return sentences about the files."""
        return ["Samples are in the order of `keys_SPLIT.txt`. Frames are divided by 255."]

    def write(self, job: ExportJob) -> None:
        """Write the arrays of each split. Memory use is bounded: one sample is decoded at a time."""
        for split in job.info["splits"]:
            rows = [row for row in job.rows if row["split"] == split]
            keys = f"keys_{split}.txt"
            # The keys are written last: with them, the split is complete.
            if job.has(keys):
                job.kept += len(rows)
                for _ in rows:
                    job.advance()
                continue
            _write_split_arrays(job, split, rows)
            job.write(keys, "".join(f"{row['key']}\n" for row in rows).encode())


def _write_split_arrays(job: ExportJob, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
    steps, height, width, channels = job.info["shape"]["frames"]
    _, bands, columns = job.info["shape"]["mel"]
    audio_shape = (len(rows), steps, 1, bands, columns)
    video_shape = (len(rows), steps, channels, height, width)
    output = job.output
    needed = 4 * (math.prod(audio_shape) + math.prod(video_shape)) + 8 * len(rows)
    check_space(output, needed)
    with (
        write_errors(output, needed),
        _NpyWriter(output / f"audio_{split}.npy", audio_shape, np.float32) as audio,
        _NpyWriter(output / f"videos_{split}.npy", video_shape, np.float32) as video,
        _NpyWriter(output / f"labels_{split}.npy", (len(rows),), np.int64) as labels,
    ):
        for row in rows:
            members = read_members(read_sample_bytes(job.files, row))
            frames = decode_frames(members, job.info["shape"]["frames"])
            audio.write(decode_mel(members, job.info["shape"]["mel"])[:, None])
            video.write(frames.transpose(0, 3, 1, 2) / np.float32(255))
            labels.write(np.int64(row["label"]))
            job.advance()
        for array in (audio, video, labels):
            array.commit()


class _NpyWriter:
    """Sequential writer of an .npy file, which gets its final name on `commit`.

    It does not use a memory map: on a full disk, a memory map ends the process with a signal.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        self.path = path
        self._partial_path = part_path(path)
        self._dtype = np.dtype(dtype)
        self._stream = open_partial(self._partial_path)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def write(self, value: np.ndarray | np.generic) -> None:
        self._stream.write(np.ascontiguousarray(value, self._dtype).data)

    def commit(self) -> None:
        self._stream.flush()
        fsync(self._stream.fileno())
        atomic_rename(self._partial_path, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # On a full disk, close() retries the failed flush and raises again.
        with suppress(OSError):
            self._stream.close()
        self._partial_path.unlink(missing_ok=True)
