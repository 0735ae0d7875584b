"""Layout of OGM-GE (CVPR 2022) and its kin, for CREMA-D.

Read by `dataset/CramedDataset.py` of GeWu-Lab/OGM-GE_CVPR2022; with renamed folders by LFM; MMCosine reads
`image/` and `stat.csv`.

    train.csv, val.csv, test.csv             rows STEM,LABEL
    stat.csv                                 a label per line
    audio/STEM.wav                           the clip's audio, 16 bits, mono
    visual/Image-NN-FPS/STEM/frame_00001.jpg NN frames per second, names in time order
    image/STEM.jpg                           the frame in the middle
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from avdata.config.schema import AlignConfig
from avdata.layouts.base import NO_SETTINGS, ExportJob, Unit
from avdata.layouts.clip_media import ClipMedia, csv_bytes

LEAST_IMAGES = 3
"""Images that PMR's preparation guarantees; OGM-GE requires as many as frames per second."""


def frames_per_second(job: ExportJob) -> int | None:
    """Return the frames per second of a dataset; None if they vary between clips or are no integer."""
    align = AlignConfig.model_validate(job.info["config"]["align"])
    if align.seconds is None or not job.steps:
        return None
    rate: Fraction = 1 / align.stride(job.steps)
    return int(rate) if rate.denominator == 1 else None


class OgmGe:
    """WAV files and JPEG files at a fixed number of frames per second."""

    readers = "GeWu-Lab/OGM-GE_CVPR2022, MMCosine_ICASSP23, njustkmg/NeurIPS24-LFM"
    preset = "ogmge-1fps"
    settings = NO_SETTINGS

    def check(self, job: ExportJob) -> None:
        """Require waveforms, and an integer number of frames per second."""
        job.check_media()
        if frames_per_second(job) is None:
            requirement = "an integer number of frames per second"
            raise job.refuse(requirement, f"{job.steps} frames of each window")

    def notes(self, job: ExportJob) -> list[str]:
        """Return sentences about the files."""
        rate = frames_per_second(job)
        return [
            f"`visual/Image-{rate:02d}-FPS/STEM/` has {rate} frame{'s' * (rate != 1)} of each second, on"
            f" screen at the middle of their interval, and at least {max(LEAST_IMAGES, rate or 0)}: if the"
            " clip is shorter, its last frame is repeated.",
            "`audio/STEM.wav` is the clip's own audio, neither padded nor repeated.",
        ]

    def write(self, job: ExportJob) -> None:
        """Write the media, then the lists."""
        rate = frames_per_second(job) or 1

        def units(row: Mapping[str, Any]) -> Iterator[Unit]:
            key = row["key"]
            yield Unit(f"audio/{key}.wav", ClipMedia.wav)
            least = min(max(LEAST_IMAGES, rate), job.steps)
            yield Unit(f"visual/Image-{rate:02d}-FPS/{key}", lambda media: media.images(least))
            yield Unit(f"image/{key}.jpg", ClipMedia.middle_image)

        job.write_units(units)
        write_label_lists(job)


def write_label_lists(job: ExportJob) -> None:
    """Write a list of `STEM,LABEL` per split, and the labels."""
    for split in job.split_names():
        rows = [(row["key"], row["label_name"]) for row in job.listed(split)]
        job.write(f"{split}.csv", csv_bytes(rows))
    job.write("stat.csv", csv_bytes([label] for label in job.info["labels"]))
