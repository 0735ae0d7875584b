"""What a network depends on in its training set: labels, mel statistics, audio and video settings.

Runs, checkpoints and `save_pretrained` store these facts. A dataset that a network is applied to must have
the same settings. Its labels are matched by name. Its mels are normalized with the training set's statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avdata.config.overrides import diff_settings
from avdata.config.schema import Config
from avdata.errors import AvdataError
from avdata.streaming.batch import AVSample
from avdata.streaming.media_file import read_media_file
from snnergy.models.inputs import SMALLEST

IGNORED_SETTINGS = frozenset(
    {
        "audio.source", "audio.flac", "video.decoder", "video.hwaccel", "video.seek", "video.storage",
        "video.quality",
    }
)  # fmt: skip
"""Settings that change where media come from or how they are stored, not what a network reads."""


@dataclass(frozen=True)
class DatasetFacts:
    """Properties of a training set that its networks depend on.

    Attributes:
        labels: names of the classes, in the order of the network's outputs; with `per_step`, the last one is
            the background.
        mel_stats: `mean` and `std` per mel band, of the train split; None: mels are not normalized.
        audio: settings `audio.*` of the preparation.
        video: settings `video.*` of the preparation.
        align: settings `align.*` of the preparation; they select the window of a file.
        has_frames: whether the samples have frames.
        per_step: the network classifies each step, not the clip.
    """

    labels: tuple[str, ...]
    mel_stats: Mapping[str, list[float]] | None
    audio: Mapping[str, Any]
    video: Mapping[str, Any]
    align: Mapping[str, Any]
    has_frames: bool
    per_step: bool = False

    @classmethod
    def of(cls, info: Mapping[str, Any], *, per_step: bool = False) -> DatasetFacts:
        """Return the facts of a prepared dataset, from its dataset.json."""
        config = info["config"]
        return cls.parse(
            {
                "labels": [*info["labels"], *([info["background"]] if per_step else [])],
                "mel_stats": info["mel_stats"],
                "audio": config["audio"],
                "video": config["video"] or {},
                "align": config["align"],
                "has_frames": info["shape"]["frames"] is not None,
                "per_step": per_step,
            }
        )

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> DatasetFacts:
        """Return the facts that `dump` wrote.

        Raises:
            ValueError: one of them is missing or of another type.
        """
        try:
            stats = stored.get("mel_stats")
            return cls(
                labels=tuple(str(label) for label in stored["labels"]),
                mel_stats=None if stats is None else {name: list(stats[name]) for name in ("mean", "std")},
                audio=dict(stored["audio"]),
                video=dict(stored["video"]),
                align=dict(stored["align"]),
                has_frames=bool(stored["has_frames"]),
                per_step=bool(stored.get("per_step", False)),
            )
        except (AttributeError, KeyError, TypeError) as error:
            msg = f"invalid facts about the training set: {error}"
            raise ValueError(msg) from error

    def dump(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {**asdict(self), "labels": list(self.labels)}

    @property
    def mel_shape(self) -> tuple[int, int, int]:
        """T, F and L of a mel."""
        config = Config.model_validate({"audio": self.audio, "video": self.video, "align": self.align})
        audio = config.audio
        bands = audio.n_fft // 2 + 1 if audio.feature == "log-stft" else audio.n_mels
        return config.video.num_frames, audio.resize[0] if audio.resize else bands, config.mel_columns

    @property
    def frame_size(self) -> int:
        """Height and width of a frame, pixels; without frames the smallest that a network accepts."""
        return int(self.video["size"]) if self.has_frames else SMALLEST

    def read_file(self, path: str | Path) -> AVSample:
        """Return the sample of a media file, prepared like the training set.

        Raises:
            AvdataError: the file cannot be read or decoded.
        """
        return read_media_file(
            path, audio=self.audio, video=self.video, align=self.align, mel_stats=self.mel_stats,
            has_frames=self.has_frames,
        )  # fmt: skip

    def check_settings(self, other: DatasetFacts, modalities: Sequence[str] = ("audio", "video")) -> None:
        """Raise unless another dataset was prepared with the same settings of some modalities.

        Raises:
            AvdataError: a setting differs; the message names all that do.
        """
        mine, theirs = (
            {name: settings for name, settings in (("audio", facts.audio), ("video", facts.video))
             if name in modalities}
            for facts in (self, other)
        )  # fmt: skip
        rows = [row for row in diff_settings(mine, theirs) if row[0] not in IGNORED_SETTINGS]
        if not rows:
            return
        differences = ", ".join(f"{name} is {new}, the training set has {old}" for name, old, new in rows)
        options = " ".join(f"--set {name}={'null' if old is None else old}" for name, old, _ in rows)
        msg = f"Dataset does not match the network: {differences}."
        raise AvdataError(msg, hint=f"Prepare the dataset with {options}")

    def label_map(self, labels: Sequence[str]) -> Tensor | None:
        """Return the network's output for each label of another dataset, int64; None if they are equal.

        Raises:
            AvdataError: the network does not have one of the labels.
        """
        unknown = sorted(set(labels) - set(self.labels))
        if unknown:
            msg = (
                f"Dataset does not match the network: labels {', '.join(unknown[:5])}"
                f"{', …' if len(unknown) > 5 else ''} are not among the network's {len(self.labels)}:"
                f" {', '.join(self.labels[:5])}{', …' if len(self.labels) > 5 else ''}."
            )
            raise AvdataError(msg, hint="Use a dataset with the labels of the training set")
        if tuple(labels) == self.labels:
            return None
        return torch.tensor([self.labels.index(label) for label in labels])

    def check_equal(self, other: DatasetFacts) -> None:
        """Raise unless another dataset has the same labels, settings and statistics, as a resume requires.

        Raises:
            AvdataError: something differs; the message names it.
        """
        self.check_settings(other)
        for name, mine, theirs in (
            ("labels", self.labels, other.labels), ("mel statistics", self.mel_stats, other.mel_stats),
        ):  # fmt: skip
            if mine != theirs:
                msg = f"Dataset is not the one of the run: its {name} differ."
                raise AvdataError(msg, hint="Resume with the dataset of the run, or choose another --output")
