"""What a person can do about a clip that was left out: a sentence for each reason."""

from __future__ import annotations

from collections.abc import Mapping

from avdata.errors import QuarantineReason

REMEDIES: Mapping[str, str] = {
    QuarantineReason.MISSING_VIDEO: "Fetch the file (avdata download goes on where it was) and "
    "prepare again.",
    QuarantineReason.MISSING_AUDIO: "Fetch the file, or use the video's own sound with --audio auto.",
    QuarantineReason.EMPTY_FILE: "Delete the file and fetch it again; an interrupted copy leaves such files.",
    QuarantineReason.LFS_POINTER: "Run git lfs pull in the checkout, or let avdata download fetch the media.",
    QuarantineReason.CHECKSUM: "Delete the file and fetch it again; --checksums off if you changed "
    "it yourself.",
    QuarantineReason.NOT_MEDIA: "Look at the file: often it is a web page saved in place of the "
    "media. Fetch it again.",
    QuarantineReason.UNREADABLE: "Try the file in a player; if it plays there, report it with its detail.",
    QuarantineReason.TRUNCATED: "Delete the file and fetch it again: its end is missing.",
    QuarantineReason.CORRUPT_FRAMES: "Fetch it again; if the source itself is damaged, raise "
    "quality.max_corrupt.",
    QuarantineReason.CORRUPT_AUDIO: "Fetch it again; if the source itself is damaged, raise "
    "quality.max_corrupt_audio.",
    QuarantineReason.NO_VIDEO_STREAM: "The source has sound only; nothing can be done short of another copy.",
    QuarantineReason.NO_AUDIO_STREAM: "The source has no sound; nothing can be done short of another copy.",
    QuarantineReason.NO_FRAMES: "Fetch it again; if it stays so, the source is damaged.",
    QuarantineReason.SILENT_AUDIO: "Listen to it; to keep silent clips, set quality.silent=flag or "
    "lower silence_dbfs.",
    QuarantineReason.BLACK_FRAMES: "Look at it; to keep black clips, set quality.black=flag.",
    QuarantineReason.FROZEN_FRAMES: "Look at it: the picture stands still.",
    QuarantineReason.CLIPPED_AUDIO: "Listen to it: much of the sound is at full scale.",
    QuarantineReason.TOO_SHORT: "Lower quality.min_seconds if such short clips are wanted.",
    QuarantineReason.TOO_LONG: "Raise quality.max_seconds if such long clips are wanted.",
    QuarantineReason.TOO_LARGE: "Raise quality.max_pixels or quality.max_bytes if the file is what "
    "it should be.",
    QuarantineReason.TIMEOUT: "Prepare again on a quieter machine, or raise quality.timeout.",
    QuarantineReason.KNOWN_BAD: "Nothing: the recipe leaves it out because its source is broken.",
    QuarantineReason.LEAK: "Nothing: you chose to drop it. --leaks keep takes it in, as published.",
    QuarantineReason.CRASH: "Report the clip: it brought the decoder down. The rest of the set is "
    "not affected.",
}


def remedy(reason: str) -> str:
    """What to do about a reason; sets made by a later version may hold ones that are not known here.

    >>> remedy("truncated")
    'Delete the file and fetch it again: its end is missing.'
    """
    return REMEDIES.get(reason, "See the detail.")


def meaning(reason: str) -> str:
    """What a reason says of a clip."""
    return (
        QuarantineReason(reason).description
        if reason in set(QuarantineReason)
        else "a reason this version does not know"
    )
