from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import avdata
from avdata.errors import AvdataError, MediaError, QuarantineReason, SourceError
from avdata.pipeline import shard_job
from avdata.pipeline.clip_errors import MAX_DETAIL, clip_errors
from avdata.recipe import Clip
from avdata.shards.reader import read_index, read_quarantine
from avdata.testing.damaged_media import DAMAGED_CONTAINERS, DAMAGED_RECIPE, write_damaged_media

CLIP = Clip("some-key", "a", "g", "train", Path("/data/of some one/clip.mp4"))

SETTINGS = {"video": {"size": 16}, "shards": {"samples_per_shard": 8}}


def quarantined(error: Exception) -> MediaError:
    with pytest.raises(MediaError) as caught, clip_errors(CLIP):
        raise error
    assert caught.value.reason is QuarantineReason.DECODER_ERROR
    return caught.value


@pytest.mark.parametrize(
    "error",
    [AttributeError("'NoneType' object has no attribute 'width'"), OverflowError("too large"), ValueError()],
)
def test_clip_errors_quarantines_unexpected_exceptions(error: Exception) -> None:
    detail = quarantined(error).detail
    assert type(error).__name__ in detail
    assert str(error) in detail
    assert CLIP.key in detail


def test_clip_errors_quarantines_errors_of_ffmpeg_with_codes_of_the_system() -> None:
    import av.error

    quarantined(av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"))
    quarantined(av.error.PermissionError(errno.EPERM, "Operation not permitted"))
    quarantined(OSError("image file is truncated"))


def test_clip_errors_detail_is_bounded_printable_and_names_no_folder() -> None:
    text = f"cannot read {CLIP.video} at 0x7f98d7291b0, /usr/lib/x y.so\n\x1b[31m\udc80" + "long " * 500
    detail = quarantined(ValueError(text)).detail
    assert "/" not in detail
    assert "7f98d7291b0" not in detail
    assert "clip.mp4" in detail
    assert detail.isprintable()
    assert len(detail) < MAX_DETAIL + 100


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO), "clip.mp4"), SourceError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SourceError),
        (MemoryError(), AvdataError),
        (ModuleNotFoundError("No module named 'cv2'"), AvdataError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SourceError("gone"), SourceError),
    ],
)
def test_clip_errors_ends_the_run_for_errors_of_the_environment(
    error: BaseException, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), clip_errors(CLIP):
        raise error


def test_prepare_quarantines_a_clip_whose_extraction_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_damaged_media(tmp_path / "source", len(DAMAGED_CONTAINERS))
    extract: Callable[..., Any] = shard_job.extract_features

    def fail(clip: Clip, *options: Any) -> Any:
        if clip.key.startswith("avi"):
            msg = "unexpected"
            raise RuntimeError(msg)
        return extract(clip, *options)

    monkeypatch.setattr(shard_job, "extract_features", fail)
    done = avdata.prepare(
        DAMAGED_RECIPE, source=tmp_path / "source", output=tmp_path / "out", config=SETTINGS,
        checksums=False, workers=0, max_quarantine=1.0,
    )  # fmt: skip
    rows = {row["key"]: row for row in read_quarantine(done.root).to_pylist()}
    assert rows["avi-00000"]["reason"] == "decoder_error"
    assert rows["avi-00000"]["detail"] == "RuntimeError: unexpected (clip avi-00000)"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_prepare_accounts_for_every_file_with_a_damaged_header(tmp_path: Path, workers: int) -> None:
    count = 20 * len(DAMAGED_CONTAINERS)
    write_damaged_media(tmp_path / "source", count, seed=workers)
    done = avdata.prepare(
        DAMAGED_RECIPE, source=tmp_path / "source", output=tmp_path / "out", config=SETTINGS,
        checksums=False, workers=workers, max_quarantine=1.0,
    )  # fmt: skip
    reasons = [row["reason"] for row in read_quarantine(done.root).to_pylist()]
    assert len(reasons) + len(read_index(done.root)) == count
    assert "decoder_error" not in reasons
