"""File layouts of existing training code, by name: a module a layout.

Each layout holds what the readers of the named code open. The tests have a small reader of each.
"""

from __future__ import annotations

from avdata.layouts.author_npy import AuthorNpy
from avdata.layouts.balancemm import BalanceMM
from avdata.layouts.base import Layout
from avdata.layouts.folders import Folders
from avdata.layouts.kinetics_sounds import KineticsSounds
from avdata.layouts.ogm_ge import OgmGe
from avdata.layouts.s_cmrl import SCmrl

EXPORT_LAYOUTS: dict[str, Layout] = {
    "ogm-ge": OgmGe(),
    "balancemm": BalanceMM(),
    "kinetics-sounds": KineticsSounds(),
    "s-cmrl": SCmrl(),
    "author-npy": AuthorNpy(),
    "folders": Folders(),
}

DEFAULT_LAYOUT = "author-npy"
