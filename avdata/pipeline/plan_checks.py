"""Checks of a plan: warnings about its clips, and the error if no clip is left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from avdata.config.schema import Config
from avdata.errors import QuarantineReason, SampleFlag, SourceError
from avdata.manifest import Manifest
from avdata.pipeline.validation import ValidClip
from avdata.recipe import Clip
from avdata.selection import QuarantinedClip

log = logging.getLogger(__name__)


def no_usable_clips(
    folder: Path, clips: int, bad: Sequence[QuarantinedClip], part: str | None = None
) -> SourceError:
    """Return the error of a source whose clips are all in quarantine, with the most frequent reason."""
    if not clips:
        msg = f"The recipe lists no clips in {folder}."
        return SourceError(msg, hint="Use --source with the folder whose layout the recipe describes.")
    if part and not bad:
        msg = f"Part {part} of the {clips} clips in {folder} is empty."
        return SourceError(msg, hint="Use fewer parts: all clips of a group are in the same part.")
    counts = Counter(clip.reason for clip in bad).most_common()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts) or "the selection excludes all"
    first = f"; the first: {bad[0].detail}" if bad else ""
    message = f"None of the {clips} clips in {folder} can be prepared ({reasons}{first})."
    hints = {
        QuarantineReason.LFS_POINTER: "Run `git lfs pull` in the source folder to download the media.",
        QuarantineReason.CHECKSUM: "Download the files again, or use --no-checksums if you changed them.",
        QuarantineReason.MISSING_AUDIO: "Use the videos' own audio with --audio-source auto, or download the"
        " audio files.",
        QuarantineReason.MISSING_VIDEO: "Download the videos: a sample needs audio and video.",
    }
    hint = (
        hints.get(counts[0][0], counts[0][0].description) if counts else "Change --limit or --group-leakage."
    )
    return SourceError(message, hint=hint)


def warn_about_counts(
    manifest: Manifest, clips: Sequence[Clip], folder: Path, *, is_default_split: bool
) -> None:
    """Warn if the numbers of clips differ from the manifest. Mocks are smaller on purpose."""
    if manifest.mock:
        return
    splits = Counter(clip.split for clip in clips if not clip.excluded)
    counts = {"clips": len(clips), "usable": splits.total(), "rows": splits.total()}
    if is_default_split:
        counts |= {split: splits[split] for split in ("train", "val", "test")}
    differences = [
        f"{counts[name]:,} {name} of {expected:,}"
        for name, expected in manifest.expected.items()
        if name in counts and counts[name] != expected
    ]
    if differences:
        log.warning("Incomplete source of %s in %s: %s.", manifest.title, folder, ", ".join(differences))


MAX_CONTAINER_AUDIO = 0.01
"""Share of clips with the audio of their video files above which a warning is logged."""


class PlanChecks:
    """Facts about the valid clips of a plan, and the warnings about them.

    Args:
        labels: label names of the recipe.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._splits: dict[str, set[bool]] = {}  # of the groups that are flagged
        self._trained: set[str] = set()
        self._count = self._without_audio = 0

    def add(self, candidate: ValidClip) -> None:
        """Record a valid clip."""
        clip = candidate.clip
        is_train = clip.split == "train"
        if SampleFlag.LEAK in clip.flags:
            self._splits.setdefault(clip.group, set()).add(is_train)
        if is_train:
            self._trained.add(clip.label)
        self._count += 1
        self._without_audio += clip.audio is not None and candidate.audio is None

    def warn(self, config: Config) -> None:
        """Log the warnings."""
        self._warn_about_leaks()
        if config.select.part is None:
            self._warn_about_labels()
        if config.audio.source == "auto":
            self._warn_about_container_audio()

    def _warn_about_leaks(self) -> None:
        """Warn if a group is in train and in another split."""
        leaking = sorted(group for group, splits in self._splits.items() if len(splits) > 1)
        if leaking:
            examples = ", ".join(leaking[:3]) + (" …" if len(leaking) > 3 else "")
            log.warning(
                "Group leakage: %d groups (%s) are in train and in another split, as published. Use"
                " --group-leakage drop-train to exclude their train clips.",
                len(leaking),
                examples,
            )

    def _warn_about_labels(self) -> None:
        """Warn if train has no clip of a label: a network cannot learn it."""
        absent = [label for label in self._labels if label not in self._trained]
        if absent:
            names = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
            log.warning("Train has no clip of %d of %d labels: %s.", len(absent), len(self._labels), names)

    def _warn_about_container_audio(self) -> None:
        """Warn if the separate audio of many clips is missing, so that the audio of their videos is used."""
        if self._without_audio > MAX_CONTAINER_AUDIO * self._count:
            log.warning(
                "Separate audio files of %d of %d clips are missing: the audio of their video files is used,"
                " and they are flagged container_audio. Add the files, or use --audio-source wav to exclude"
                " these clips, or --audio-source container to use the audio of the video files for all.",
                self._without_audio,
                self._count,
            )
