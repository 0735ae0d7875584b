"""Layout of folders by split and label, for torchvision's ImageFolder and Hugging Face datasets.

    SPLIT/LABEL/STEM.jpg      the frame in the middle                              (media jpg)
    SPLIT/LABEL/STEM.wav      the clip's audio, 16 bits, mono                      (media wav)
    SPLIT/LABEL/STEM.mp4      all frames (MPEG-4) and the audio (AAC)              (media mp4)
    SPLIT/metadata.csv        a row per clip: files, label and key

`metadata.csv` names the file of each kind relative to its folder; the first kind is `file_name`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from avdata.errors import UsageError, did_you_mean
from avdata.layouts.base import NO_SETTINGS, ExportJob, Unit, folder_name
from avdata.layouts.clip_media import ClipMedia, csv_bytes
from avdata.layouts.mp4 import encode_mp4

MEDIA: Mapping[str, Callable[[ClipMedia], bytes]] = {
    "jpg": ClipMedia.middle_image,
    "wav": ClipMedia.wav,
    "mp4": encode_mp4,
}


class Folders:
    """Files of each clip in folders by split and label."""

    readers = "torchvision.datasets.ImageFolder, datasets.load_dataset('imagefolder' or 'audiofolder')"
    preset = "ogmge-1fps"
    settings = NO_SETTINGS

    def check(self, job: ExportJob) -> None:
        """Require what the media need: frames, and waveforms for wav."""
        media = self._media(job)
        for name in media:
            if name not in MEDIA:
                msg = f"Unknown media {name!r}."
                raise UsageError(msg, hint=did_you_mean(name, list(MEDIA)))
        job.check_media(frames=int("jpg" in media or "mp4" in media), waveform="wav" in media)

    def notes(self, job: ExportJob) -> list[str]:
        """Return sentences about the files."""
        return [f"The files of a clip are {', '.join(self._media(job))}; `--media` selects others."]

    def write(self, job: ExportJob) -> None:
        """Write the media, then the tables."""
        media = self._media(job)

        def units(row: Mapping[str, Any]) -> Iterator[Unit]:
            for name in media:
                yield Unit(f"{row['split']}/{self._path(row, name)}", MEDIA[name])

        job.write_units(units)
        for split in job.info["splits"]:
            names = [f"{name}_file_name" if number else "file_name" for number, name in enumerate(media)]
            table = [[*names, "label", "key"]]
            for row in job.rows:
                if row["split"] == split:
                    table.append([*(self._path(row, name) for name in media), row["label_name"], row["key"]])
            job.write(f"{split}/metadata.csv", csv_bytes(table))

    def _media(self, job: ExportJob) -> tuple[str, ...]:
        if job.options.media:
            return job.options.media
        frames = ("jpg",) if job.steps else ()
        return (*frames, "wav") if job.info["config"]["audio"]["flac"] or not frames else frames

    def _path(self, row: Mapping[str, Any], name: str) -> str:
        return f"{folder_name(row['label_name'])}/{row['key']}.{name}"
