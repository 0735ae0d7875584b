"""Remedies of quarantined clips: one sentence per reason."""

from __future__ import annotations

from collections.abc import Mapping

from avdata.errors import QuarantineReason

_DOWNLOAD_AGAIN = "Delete the file and download it again"

REMEDIES: Mapping[str, str] = {
    QuarantineReason.MISSING_VIDEO: "Download the file (avdata download resumes) and prepare again.",
    QuarantineReason.MISSING_AUDIO: "Download the file, or use the video's own audio with"
    " --audio-source auto.",
    QuarantineReason.NOT_DOWNLOADED: "Run avdata download RECIPE --failed, then prepare with --overwrite.",
    QuarantineReason.EMPTY_FILE: f"{_DOWNLOAD_AGAIN}. Interrupted copies leave empty files.",
    QuarantineReason.LFS_POINTER: "Run git lfs pull in the checkout, or avdata download to fetch the media.",
    QuarantineReason.CHECKSUM: f"{_DOWNLOAD_AGAIN}."
    " If you changed it yourself, use --no-checksums and --rehash.",
    QuarantineReason.NOT_MEDIA: "Check the file: often it is a web page saved instead of the media."
    " Download it again.",
    QuarantineReason.FORMAT_NOT_ALLOWED: "Convert the file, for example with ffmpeg -i FILE NEW.mkv;"
    " docs/formats.md lists the formats that are read.",
    QuarantineReason.UNREADABLE: "Play the file in a media player. If it plays, report it with its detail.",
    QuarantineReason.TRUNCATED: f"{_DOWNLOAD_AGAIN}: its end is missing.",
    QuarantineReason.DECODER_ERROR: "Play the file in a media player. If it plays, report the detail.",
    QuarantineReason.CORRUPT_FRAMES: f"{_DOWNLOAD_AGAIN}. If the source itself is damaged, raise"
    " quality.max_corrupt.",
    QuarantineReason.CORRUPT_AUDIO: f"{_DOWNLOAD_AGAIN}. If the source itself is damaged, raise"
    " quality.max_corrupt_audio.",
    QuarantineReason.NO_VIDEO_STREAM: "Use another copy: the source has audio only.",
    QuarantineReason.NO_AUDIO_STREAM: "Use another copy: the source has no audio. To keep such clips"
    " with silence, set quality.no_audio=flag.",
    QuarantineReason.UNDECODABLE_VIDEO: "Convert the video, for example with ffmpeg -i FILE NEW.mp4.",
    QuarantineReason.UNDECODABLE_AUDIO: "Convert the audio, for example with ffmpeg -i FILE NEW.mp4.",
    QuarantineReason.NO_FRAMES: f"{_DOWNLOAD_AGAIN}. If that does not help, the source is damaged.",
    QuarantineReason.SILENT_AUDIO: "Listen to the clip. To keep silent clips, set quality.silent=flag or"
    " lower quality.silence_dbfs.",
    QuarantineReason.PHASE_CANCELLED: "Use one of the channels, with --set audio.channel=left or right.",
    QuarantineReason.BLACK_FRAMES: "Watch the clip. To keep black clips, set quality.black=flag.",
    QuarantineReason.FROZEN_FRAMES: "Watch the clip. To keep clips whose frames do not change, set"
    " quality.frozen=flag.",
    QuarantineReason.CLIPPED_AUDIO: "Listen to the clip. To keep clips with audio at full scale, set"
    " quality.clipped=flag.",
    QuarantineReason.TOO_SHORT: "Lower quality.min_seconds to keep such short clips.",
    QuarantineReason.TOO_LONG: "Raise quality.max_seconds to keep such long clips.",
    QuarantineReason.TOO_LARGE: "Raise quality.max_pixels or quality.max_bytes if the file is correct.",
    QuarantineReason.TIMEOUT: "Prepare again on a machine with less load, or raise quality.timeout.",
    QuarantineReason.KNOWN_BAD: "None: the recipe excludes the clip because its source is broken.",
    QuarantineReason.LEAK: "None: you chose to exclude it. --group-leakage keep includes it, as published.",
    QuarantineReason.DUPLICATE_KEY: "Rename one of the clips. If each tar numbers its clips anew, use"
    " --task-option key=tar.",
    QuarantineReason.NO_LABEL: "Add the value to the clip's metadata, or name another field with"
    " --task-option.",
    QuarantineReason.CRASH: "Report the clip: it crashed the decoder. No other clip is affected.",
}


def remedy(reason: str) -> str:
    """Return what to do about a quarantine reason. Later versions may write unknown reasons.

    >>> remedy("truncated")
    'Delete the file and download it again: its end is missing.'
    """
    return REMEDIES.get(reason, "See the detail.")


def meaning(reason: str) -> str:
    """Return the description of a quarantine reason."""
    return (
        QuarantineReason(reason).description
        if reason in set(QuarantineReason)
        else "a reason unknown to this version of avdata"
    )
