"""Shard job: write the clips of one shard to a tar, and its entry to the journal.

A job depends on its own clips only and may run in any process on any machine that can read the files. The
result does not depend on the worker, the order of the jobs, or the number of restarts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import Config
from avdata.errors import MediaError, QuarantineReason
from avdata.features.alignment import Window, step_centers
from avdata.features.audio.mel_filterbank import MelFilterbank
from avdata.features.extract import Features, extract_features
from avdata.pipeline.clip_errors import clip_errors
from avdata.pipeline.engines.base import NO_ITEM, Report
from avdata.pipeline.output import Output
from avdata.pipeline.remote_source import fetch_clip
from avdata.pipeline.tar_files import local_clip
from avdata.pipeline.validation import SourceFile, ValidClip, check_content
from avdata.recipe import Clip
from avdata.shards.mel_sums import MelSums
from avdata.shards.writer import ShardWriter, encode_members
from avdata.storage.atomic import fsync, open_partial, write_errors
from avdata.storage.hashing import hash_file


@dataclass(frozen=True)
class ShardJob:
    """Inputs of one shard.

    Attributes:
        output: where the dataset is prepared.
        shard: path of the shard below the dataset.
        clips: clips in the order of the shard.
        config: settings.
        labels: label names in canonical order.
        background: label of the steps outside a clip's event, or None.
        excluded: reason and detail of clips that crashed a worker or timed out, by key.
        allow_missing: quarantine clips whose files could not be downloaded. Like `source`, it is not in the
            fingerprint: the journal's entries with such clips are not used again.
        source: URL of a source in object storage, whose files are downloaded when needed; else None.
        filterbank: the result of `feature_filterbank(config.audio)`, so that workers do not import librosa.
            The config determines it, so the fingerprint does not include it.
    """

    output: Output
    shard: str
    clips: Sequence[ValidClip]
    config: Config
    labels: tuple[str, ...]
    background: str | None
    excluded: Mapping[str, tuple[QuarantineReason, str]] = field(default_factory=dict)
    source: str | None = None
    allow_missing: bool = False
    filterbank: MelFilterbank | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that determines the shard's bytes: equal fingerprints, equal shards."""
        facts = {
            "shard": self.shard,
            "config": self.config.canonical(),
            "labels": self.labels,
            "background": self.background,
            "clips": [_identity(candidate) for candidate in self.clips],
        }
        return hashlib.sha256(
            json.dumps(facts, sort_keys=True, default=str, allow_nan=False).encode()
        ).hexdigest()


def _identity(candidate: ValidClip) -> dict[str, Any]:
    clip = {name: getattr(candidate.clip, name) for name in _FINGERPRINT_FIELDS}
    clip["extras"] = dict(candidate.clip.extras)
    files = {"video": candidate.video, "audio": candidate.audio}
    return {"clip": clip, **{role: file and _file_entry(file) for role, file in files.items()}}


# The location of the source folder does not change any byte; paths below it and checksums do.
_FINGERPRINT_FIELDS = tuple(field.name for field in fields(Clip) if field.name not in {"video", "audio"})


def _file_entry(file: SourceFile) -> dict[str, Any]:
    """Return the fields as a dict, ten times faster than `dataclasses.asdict`."""
    return {"path": file.path, "sha256": file.sha256, "bytes": file.bytes}


def exclude_clip(job: ShardJob, key: str, reason: QuarantineReason, detail: str) -> ShardJob:
    """Return the job without one clip, which goes to quarantine."""
    return replace(job, excluded={**job.excluded, key: (reason, detail)})


def run_shard_job(job: ShardJob, report: Report) -> dict[str, Any]:
    """Write the shard and commit it to the output; return its journal entry.

    Args:
        job: the job.
        report: called with each clip's key before the clip is decoded.

    Raises:
        AvdataError: the shard cannot be written, or a source file cannot be read.
    """
    part = job.output.partial_path(job.shard)
    quarantine: list[dict[str, str]] = []
    mel_sums = MelSums()
    with write_errors(part) as errors, _removed_on_error(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        with open_partial(part) as stream:
            writer = ShardWriter(stream, job.shard)
            for candidate in job.clips:
                try:
                    features = _extract(job, candidate, report)
                    with clip_errors(candidate.clip):
                        members, row = _sample(job, candidate, features)
                except MediaError as error:
                    quarantine.append(_quarantine_row(candidate, error))
                    continue
                mel_sums.add_mel(features.mel)
                writer.add(candidate.clip.key, members, row)
                errors.needed = stream.tell() // len(writer.rows) * len(job.clips)
            report(NO_ITEM)
            writer.close()
            stream.flush()
            fsync(stream.fileno())
        if not writer.rows:
            part.unlink()
        entry = {
            "fingerprint": job.fingerprint,
            "shard": job.shard,
            "bytes": part.stat().st_size if writer.rows else 0,
            "sha256": hash_file(part) if writer.rows else "",
            "rows": writer.rows,
            "quarantine": quarantine,
            "mel": mel_sums.to_json(),
        }
    job.output.commit(job.shard, entry)
    return entry


@contextmanager
def _removed_on_error(part: Path) -> Iterator[None]:
    """Remove a partial shard that is not completed: it would keep a full disk full."""
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _extract(job: ShardJob, candidate: ValidClip, report: Report) -> Features:
    key = candidate.clip.key
    if key in job.excluded:
        raise MediaError(*job.excluded[key])
    report(key)
    candidate = fetch_clip(candidate, job.source)
    if job.allow_missing:
        _check_downloaded(candidate)
    part = job.output.partial_path(job.shard)
    folder = part.with_name(f"{part.name}.clip")
    with clip_errors(candidate.clip), local_clip(candidate, folder, job.config.quality) as clip:
        for path, verified in ((clip.video, candidate.video), (clip.audio, candidate.audio)):
            # Members of tars were compared when they were copied.
            if path is not None and verified is not None and verified.member is None:
                check_content(path, verified)
        return extract_features(clip, job.config, job.filterbank)


def _check_downloaded(candidate: ValidClip) -> None:
    media = ((candidate.clip.video, candidate.video), (candidate.clip.audio, candidate.audio))
    for path, file in media:
        if path is not None and file is not None and not path.exists():
            raise MediaError(QuarantineReason.NOT_DOWNLOADED, f"{file.path} could not be downloaded")


def _quarantine_row(candidate: ValidClip, error: MediaError) -> dict[str, str]:
    return {"key": candidate.clip.key, "reason": error.reason, "detail": error.detail, "kept": ""}


def _sample(
    job: ShardJob, candidate: ValidClip, features: Features
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the members of a sample and its row of the index."""
    clip = candidate.clip
    if not np.isfinite(features.mel).all():
        raise MediaError(QuarantineReason.CORRUPT_AUDIO, f"the spectrogram is not finite (clip {clip.key})")
    label = job.labels.index(clip.label)
    flags = sorted({*clip.flags, *features.flags})
    row = {
        "split": clip.split,
        "label": label,
        "label_name": clip.label,
        "group": clip.group,
        "window_start": features.window[0],
        "window_end": features.window[1],
        "av_offset": features.av_offset,
        "av_peak": features.av_peak,
        "duration_audio": features.duration_audio,
        "duration_video": features.duration_video,
        "pad_fraction": features.pad_fraction,
        "flags": flags,
    }
    facts = {
        name: value for name, value in row.items() if name not in {"label", "flags"} and value is not None
    }
    facts |= {
        "key": clip.key,
        "sources": _sources(candidate),
        "media": features.source,
        **_steps(job, candidate, features),
    }
    # Readers infer the JSON's types from the first sample, and an empty list has no type.
    if flags:
        facts["flags"] = flags
    if features.frame_times:
        facts["frame_times"] = list(features.frame_times)
    if features.waveform_span:
        facts["waveform_span"] = list(features.waveform_span)
    if clip.extras:
        facts["extras"] = dict(clip.extras)
    return encode_members(features, label, facts, job.config), row


def _sources(candidate: ValidClip) -> dict[str, dict[str, Any]]:
    files: dict[str, SourceFile | None] = {"video": candidate.video, "audio": candidate.audio}
    return {role: _file_entry(file) for role, file in files.items() if file is not None}


def _steps(job: ShardJob, candidate: ValidClip, features: Features) -> dict[str, Any]:
    """Return the times of the steps and, if labels vary within clips, the label index of each step."""
    start, end = features.window
    align, steps = job.config.align, job.config.video.num_frames
    middles = [round(float(middle), 6) for middle in step_centers(Window(start, end), steps, align.segment)]
    if job.background is None:
        return {"step_times": middles}
    label, background = job.labels.index(candidate.clip.label), len(job.labels)
    first, last = candidate.clip.event or (start, end)
    return {
        "step_times": middles,
        "event": [float(first), float(last)],
        "step_labels": [label if first <= middle < last else background for middle in middles],
    }
