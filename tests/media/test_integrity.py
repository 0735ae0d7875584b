from __future__ import annotations

from pathlib import Path

import pytest
from support.containers import CONTAINERS, SMALL_SCENE

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio import decode_audio
from avdata.testing.media import scene_audio, write_av, write_wav

QUALITY = QualityConfig()


@pytest.mark.parametrize("suffix", ["flv", "mp4", "wav", "avi"])
def test_truncated_file_is_detected(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    if suffix == "wav":
        write_wav(path, scene_audio(SMALL_SCENE, 16_000), 16_000)
    else:
        write_av(path, SMALL_SCENE, **CONTAINERS[suffix])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(MediaError) as caught:
        decode_audio(path, QUALITY)
    assert caught.value.reason in {QuarantineReason.TRUNCATED, QuarantineReason.UNREADABLE}
