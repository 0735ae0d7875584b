"""Checks of a plan: warnings about its clips, and the error if no clip is left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from avdata.config.schema import AudioConfig
from avdata.errors import QuarantineReason, SourceError
from avdata.manifest import Manifest
from avdata.pipeline.validation import ValidClip
from avdata.recipe import Clip
from avdata.selection import QuarantinedClip

log = logging.getLogger(__name__)


def no_usable_clips(folder: Path, clips: Sequence[Clip], bad: Sequence[QuarantinedClip]) -> SourceError:
    """Return the error of a source whose clips are all in quarantine, with the most frequent reason."""
    counts = Counter(clip.reason for clip in bad).most_common()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts) or "the selection excludes all"
    first = f"; the first: {bad[0].detail}" if bad else ""
    message = f"None of the {len(clips)} clips in {folder} can be prepared ({reasons}{first})."
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
    usable = [clip for clip in clips if not clip.excluded]
    counts = {"clips": len(clips), "usable": len(usable), "rows": len(usable)}
    if is_default_split:
        counts |= {split: sum(clip.split == split for clip in usable) for split in ("train", "val", "test")}
    differences = [
        f"{counts[name]:,} {name} of {expected:,}"
        for name, expected in manifest.expected.items()
        if name in counts and counts[name] != expected
    ]
    if differences:
        log.warning("Incomplete source of %s in %s: %s.", manifest.title, folder, ", ".join(differences))


def warn_about_leaks(candidates: Sequence[ValidClip]) -> None:
    """Warn if a group is in train and in another split."""
    groups: dict[str, set[str]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.clip.group, set()).add(candidate.clip.split)
    leaking = sorted(group for group, splits in groups.items() if "train" in splits and len(splits) > 1)
    if leaking:
        examples = ", ".join(leaking[:3]) + (" …" if len(leaking) > 3 else "")
        log.warning(
            "Group leakage: %d of %d groups (%s) are in train and in another split, as published. Use"
            " --group-leakage drop-train to exclude their train clips.",
            len(leaking),
            len(groups),
            examples,
        )


MAX_CONTAINER_AUDIO = 0.01
"""Share of clips with the audio of their video files above which a warning is logged."""


def warn_about_container_audio(candidates: Sequence[ValidClip], audio: AudioConfig) -> None:
    """Warn if the separate audio of many clips is missing, so that the audio of their video files is used."""
    count = sum(candidate.clip.audio is not None and candidate.audio is None for candidate in candidates)
    if audio.source == "auto" and count > MAX_CONTAINER_AUDIO * len(candidates):
        log.warning(
            "Separate audio files of %d of %d clips are missing: the audio of their video files is used, and"
            " they are flagged container_audio. Add the files, or use --audio-source wav to exclude these"
            " clips, or --audio-source container to use the audio of the video files for all.",
            count,
            len(candidates),
        )


def warn_about_labels(candidates: Sequence[ValidClip], labels: Sequence[str]) -> None:
    """Warn if train has no clip of a label: a network cannot learn it."""
    trained = {candidate.clip.label for candidate in candidates if candidate.clip.split == "train"}
    absent = [label for label in labels if label not in trained]
    if absent:
        names = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
        log.warning("Train has no clip of %d of %d labels: %s.", len(absent), len(labels), names)
