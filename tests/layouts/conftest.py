"""A dataset with waveforms, prepared once for all layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import avdata

Once = Callable[[str, Callable[[Path], object]], Path]

SETTINGS = {"video": {"size": 32, "num_frames": 6}, "shards": {"samples_per_shard": 4}}


@pytest.fixture(scope="session")
def layout_set(once: Once, cremad_mock: Path) -> Path:
    """Return CREMA-D's mock at 1 frame per second with OGM-GE's split, 8 clips."""
    return once(
        "layouts",
        lambda out: avdata.prepare(
            "cremad", source=cremad_mock, output=out, workers=0, preset="ogmge-1fps",
            config={**SETTINGS, "select": {"split_by": "ogmge", "limit": 8}},
        ),
    )  # fmt: skip
