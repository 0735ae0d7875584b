"""A recipe of one's own that does not work: the file and line of it, and no traceback of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

import avdata
from avdata.errors import AvdataError

WORKING = (Path(__file__).parents[1] / "docs" / "own_recipe.py").read_text(encoding="utf-8")
LINE = WORKING[: WORKING.index("    films = ")].count("\n") + 1


def prepared(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(text, encoding="utf-8")
    avdata.prepare(recipe, source=tmp_path, out=tmp_path / "set", checksums=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef broken(:\n", r"mine\.py:2 raised SyntaxError: invalid syntax"),
        ("\nimport nothing_of_this_name", r"mine\.py:2 raised ModuleNotFoundError: .*nothing_of_this_name"),
        (
            WORKING.replace("    films = ", "    films = {}['gone'] or "),
            rf"mine\.py:{LINE} raised KeyError: 'gone'",
        ),
        ("y = 3", r"mine\.py defines no RECIPE"),
    ],
)
def test_what_fails_in_ones_own_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AvdataError, match=said):
        prepared(tmp_path, text)
