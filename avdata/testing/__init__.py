"""Generated media and mock datasets, for the `mock` function of recipes and for tests.

from avdata.testing import Scene, write_av, write_ground_truth

write_av(root / "clap.mp4", Scene(seconds=2.5, flashes=(1.0,), beeps=(1.0,)), vcodec="mpeg4", acodec="aac")
write_ground_truth(root, {})
"""

from avdata.testing.conversion import convert_av
from avdata.testing.media import (
    NTSC,
    Scene,
    Subtype,
    scene_audio,
    scene_frame,
    write_av,
    write_image,
    write_wav,
)
from avdata.testing.mock_dataset import divide_clips, write_ground_truth, write_manifest

__all__ = [
    "NTSC",
    "Scene",
    "Subtype",
    "convert_av",
    "divide_clips",
    "scene_audio",
    "scene_frame",
    "write_av",
    "write_ground_truth",
    "write_image",
    "write_manifest",
    "write_wav",
]
