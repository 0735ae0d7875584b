"""Layout of BalanceBenchmark, MMPareto (ICML 2024) and Diagnosing & Re-learning (ECCV 2024), for CREMA-D.

Read by `balancemm/datasets/cremad_dataset.py` of GeWu-Lab/BalanceBenchmark, and `code/dataset/av_dataset.py`
of MMPareto_ICML2024 and Diagnosing_Relearning_ECCV2024.

    train.csv, val.csv, test.csv      rows STEM,LABEL
    stat.csv                          a label per line
    audio/STEM.pt                     float32 tensor [frames, 128], Kaldi's filterbank
    visual/STEM/frame_00001.jpg       4 to 99 frames, in time order
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from avdata.layouts.base import NO_SETTINGS, ExportJob, Unit
from avdata.layouts.clip_media import FBANK, NORMALIZATION, ClipMedia
from avdata.layouts.ogm_ge import write_label_lists

LEAST_IMAGES = 4
"""With fewer, the test mode of MMPareto opens frame_00000.jpg."""

MOST_IMAGES = 99
"""MMPareto builds names from the last two digits."""

DEFAULT_FBANK_FRAMES = 300
"""Rows of the filterbank: 3 s, as long as OGM-GE and MMCosine make CREMA-D's clips. None is published."""


class BalanceMM:
    """Filterbanks as tensors, and numbered JPEG files."""

    readers = "GeWu-Lab/BalanceBenchmark, MMPareto_ICML2024, Diagnosing_Relearning_ECCV2024"
    preset = "balancemm"
    settings = NO_SETTINGS

    def check(self, job: ExportJob) -> None:
        """Require waveforms and 4 to 99 frames."""
        job.check_media(frames=LEAST_IMAGES, most=MOST_IMAGES)

    def notes(self, job: ExportJob) -> list[str]:
        """Return sentences about the files."""
        rows = job.options.fbank_frames or DEFAULT_FBANK_FRAMES
        return [
            f"`audio/STEM.pt` is {FBANK}, cut or zero-padded to {rows} rows, then"
            f" {NORMALIZATION}. No length is published for CREMA-D: `--fbank-frames` sets it.",
            f"`visual/STEM/` has at least {LEAST_IMAGES} frames: if the clip is shorter, its last frame is"
            " repeated.",
        ]

    def write(self, job: ExportJob) -> None:
        """Write the media, then the lists."""
        rows = job.options.fbank_frames or DEFAULT_FBANK_FRAMES

        def units(row: Mapping[str, Any]) -> Iterator[Unit]:
            yield Unit(f"audio/{row['key']}.pt", lambda media: _tensor(media, rows))
            yield Unit(f"visual/{row['key']}", lambda media: media.images(LEAST_IMAGES))

        job.write_units(units)
        write_label_lists(job)


def _tensor(media: ClipMedia, rows: int) -> bytes:
    """Return the filterbank as a file of `torch.save`, which loads with `weights_only=True`."""
    import torch  # noqa: PLC0415

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(media.fbank(rows)), buffer)
    return buffer.getvalue()
