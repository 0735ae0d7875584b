"""The tables of docs/settings.md are those that docs/settings_tables.py makes from the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from snnergy.fusion.registry import FUSIONS

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "settings.md").read_text(encoding="utf-8")


def test_settings_page_is_generated_from_the_code() -> None:
    tables = runpy.run_path(str(DOCS / "settings_tables.py"))
    assert all(TEXT.count(f"<!-- table: {name} -->") == 1 for name in tables["TABLES"])
    assert tables["regenerate"](TEXT) == TEXT, "run: python docs/settings_tables.py"
    assert tables["regenerate"](TEXT.replace("| `video.size` | `128`", "| `video.size` | `64`")) == TEXT


def test_settings_page_names_each_fusion() -> None:
    table = TEXT.partition("| `fusion` | how")[2]
    assert set(re.findall(r"`(\w+)`", table)) == set(FUSIONS)
