"""Layout of the Kinetics-Sounds readers of BalanceBenchmark and OGM-GE's kin.

Read by `balancemm/datasets/KS_dataset.py` of GeWu-Lab/BalanceBenchmark.

    train.txt, val.txt, test.txt      lines STEM LABEL-NUMBER
    stat.csv                          a label per line, in the order of the numbers
    audio/STEM.npy                    float32 [1024, 128], Kaldi's filterbank
    visual/STEM/frame_00001.jpg       4 to 11 frames, in time order
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from avdata.config.overrides import Overrides
from avdata.layouts.base import ExportJob, Unit
from avdata.layouts.clip_media import FBANK, NORMALIZATION, csv_bytes

LEAST_IMAGES = 4
"""The reader skips clips with fewer."""

MOST_IMAGES = 11
"""With more, the test mode of the reader opens frame_000010.jpg, with six digits."""

DEFAULT_FBANK_FRAMES = 1024
"""Rows of the filterbank in OGM-GE's `data/KineticSound/process_audio.py`."""


SETTINGS: Overrides = {"video": {"num_frames": 10}, "align": {"seconds": 10.0}}
"""A frame of each of the 10 seconds of a clip of Kinetics."""


class KineticsSounds:
    """Filterbanks as arrays, and numbered JPEG files."""

    readers = "GeWu-Lab/BalanceBenchmark (Kinetics-Sounds)"
    preset = "balancemm"
    settings = SETTINGS

    def check(self, job: ExportJob) -> None:
        """Require waveforms and 4 to 11 frames."""
        job.check_media(frames=LEAST_IMAGES, most=MOST_IMAGES)

    def notes(self, job: ExportJob) -> list[str]:
        """Return sentences about the files."""
        rows = job.options.fbank_frames or DEFAULT_FBANK_FRAMES
        return [
            f"`audio/STEM.npy` is {FBANK}, cut or zero-padded to {rows} rows, then {NORMALIZATION}.",
            "The numbers of the lists count the lines of `stat.csv` from 0.",
        ]

    def write(self, job: ExportJob) -> None:
        """Write the media, then the lists."""
        rows = job.options.fbank_frames or DEFAULT_FBANK_FRAMES

        def units(row: Mapping[str, Any]) -> Iterator[Unit]:
            yield Unit(f"audio/{row['key']}.npy", lambda media: _npy(media.fbank(rows)))
            yield Unit(f"visual/{row['key']}", lambda media: media.images(LEAST_IMAGES))

        job.write_units(units)
        for split in job.split_names():
            lines = [f"{row['key']} {row['label']}\n" for row in job.listed(split)]
            job.write(f"{split}.txt", "".join(lines).encode())
        job.write("stat.csv", csv_bytes([label] for label in job.info["labels"]))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()
