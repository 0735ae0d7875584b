"""The table of video decoders agrees with the settings and imports no decoder's package."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

from avdata.config.schema import VideoConfig
from avdata.media.decoders import DECODERS


def test_decoders_are_the_values_of_video_decoder() -> None:
    assert tuple(DECODERS) == get_args(VideoConfig.model_fields["decoder"].annotation)
    assert DECODERS[VideoConfig().decoder].reuses_packets


def test_decoder_table_imports_no_decoder_package() -> None:
    code = "import sys, avdata.media.decoders; sys.exit(bool({'av', 'decord'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
