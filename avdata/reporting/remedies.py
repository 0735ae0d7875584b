"""What a person can do about a clip that was left out: a sentence for each reason."""

from __future__ import annotations

from collections.abc import Mapping

from avdata.errors import Reason

REMEDIES: Mapping[str, str] = {
    Reason.MISSING_VIDEO: "Fetch the file (avdata download goes on where it was) and prepare again.",
    Reason.MISSING_AUDIO: "Fetch the file, or use the video's own sound with --audio auto.",
    Reason.EMPTY_FILE: "Delete the file and fetch it again; an interrupted copy leaves such files.",
    Reason.LFS_POINTER: "Run git lfs pull in the checkout, or let avdata download fetch the media.",
    Reason.CHECKSUM: "Delete the file and fetch it again; --checksums off if you changed it yourself.",
    Reason.NOT_MEDIA: "Look at the file: often it is a web page saved in place of the media. Fetch it again.",
    Reason.UNREADABLE: "Try the file in a player; if it plays there, report it with its detail.",
    Reason.TRUNCATED: "Delete the file and fetch it again: its end is missing.",
    Reason.CORRUPT_FRAMES: "Fetch it again; if the source itself is damaged, raise quality.max_corrupt.",
    Reason.CORRUPT_AUDIO: "Fetch it again; if the source itself is damaged, raise quality.max_corrupt_audio.",
    Reason.NO_VIDEO_STREAM: "The source has sound only; nothing can be done short of another copy.",
    Reason.NO_AUDIO_STREAM: "The source has no sound; nothing can be done short of another copy.",
    Reason.NO_FRAMES: "Fetch it again; if it stays so, the source is damaged.",
    Reason.SILENT_AUDIO: "Listen to it; to keep silent clips, set quality.silent=flag or lower silence_dbfs.",
    Reason.BLACK_FRAMES: "Look at it; to keep black clips, set quality.black=flag.",
    Reason.FROZEN_FRAMES: "Look at it: the picture stands still.",
    Reason.CLIPPED_AUDIO: "Listen to it: much of the sound is at full scale.",
    Reason.TOO_SHORT: "Lower quality.min_seconds if such short clips are wanted.",
    Reason.TOO_LONG: "Raise quality.max_seconds if such long clips are wanted.",
    Reason.TOO_LARGE: "Raise quality.max_pixels or quality.max_bytes if the file is what it should be.",
    Reason.TIMEOUT: "Prepare again on a quieter machine, or raise quality.timeout.",
    Reason.KNOWN_BAD: "Nothing: the recipe leaves it out because its source is broken.",
    Reason.LEAK: "Nothing: you chose to drop it. --leaks keep takes it in, as published.",
    Reason.CRASH: "Report the clip: it brought the decoder down. The rest of the set is not affected.",
}


def remedy(reason: str) -> str:
    """What to do about a reason; sets made by a later version may hold ones that are not known here.

    >>> remedy("truncated")
    'Delete the file and fetch it again: its end is missing.'
    """
    return REMEDIES.get(reason, "See the detail.")


def meaning(reason: str) -> str:
    """What a reason says of a clip."""
    return Reason(reason).sentence if reason in set(Reason) else "a reason this version does not know"
