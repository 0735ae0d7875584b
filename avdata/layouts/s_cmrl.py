"""Layout of S-CMRL (arXiv 2502.12488), for CREMA-D and UrbanSound8K-AV.

Read by `braincog/datasets/datasets.py` of Brain-Cog-Lab/S-CMRL, which replaces `visual` by `audio` in the
path of an image: no parent folder may contain that word.

    {train,val,test}/visual/LABEL/STEM.jpg   one frame of the clip            (CREMADDataset)
    {train,val,test}/audio/LABEL/STEM.wav    its audio

    Dataset_v3_vision/LABEL/STEM.jpg         the image, without splits        (UrbanSound8KDataset)
    Dataset_v3_sound/LABEL/STEM.wav          its audio
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from avdata.config.overrides import Overrides
from avdata.layouts.base import ExportJob, Unit, folder_name
from avdata.layouts.clip_media import ClipMedia, csv_bytes

WITHOUT_SPLITS = "urbansound8k-av"
"""The dataset whose clips S-CMRL divides itself, by the order of the files."""


SETTINGS: Overrides = {
    "video": {"resize_mode": "crop"}, "audio": {"sample_rate": 22_050, "hop_length": 147},
}  # fmt: skip
"""The reader scales the short side to 256 pixels and crops; it resamples audio to 22,050 Hz."""


class SCmrl:
    """An image and a WAV file of each clip, in folders by label."""

    readers = "Brain-Cog-Lab/S-CMRL"
    preset = "ogmge-1fps"
    settings = SETTINGS

    def check(self, job: ExportJob) -> None:
        """Require waveforms and frames."""
        job.check_media()

    def notes(self, job: ExportJob) -> list[str]:
        """Return sentences about the files."""
        if job.info["name"] == WITHOUT_SPLITS:
            return [
                "S-CMRL takes the first 70 % of each class for training, in the order of the file system."
                " The splits of this dataset are in `splits.csv`, which S-CMRL does not read."
            ]
        counts = [f"`class_counts_{name} = {self._counts(job, name)}`" for name in ("train", "test")]
        return [
            "S-CMRL's `get_CREMAD_data` contains the numbers of clips of the published list. With this"
            f" dataset they are {' and '.join(counts)}."
        ]

    def write(self, job: ExportJob) -> None:
        """Write the media, and for UrbanSound8K-AV the splits."""

        def units(row: Mapping[str, Any]) -> Iterator[Unit]:
            image, audio = self._folders(job, row)
            label = folder_name(row["label_name"])
            yield Unit(f"{image}/{label}/{row['key']}.jpg", ClipMedia.middle_image)
            yield Unit(f"{audio}/{label}/{row['key']}.wav", ClipMedia.wav)

        job.write_units(units)
        if job.info["name"] == WITHOUT_SPLITS:
            rows = sorted((row["key"], row["label_name"], row["split"]) for row in job.rows)
            job.write("splits.csv", csv_bytes(rows))

    def _folders(self, job: ExportJob, row: Mapping[str, Any]) -> tuple[str, str]:
        if job.info["name"] == WITHOUT_SPLITS:
            return "Dataset_v3_vision", "Dataset_v3_sound"
        split = "train" if job.options.merge_val and row["split"] == "val" else row["split"]
        return f"{split}/visual", f"{split}/audio"

    def _counts(self, job: ExportJob, split: str) -> list[int]:
        counts = Counter(row["label_name"] for row in job.listed(split))
        return [counts[label] for label in sorted(job.info["labels"])]
