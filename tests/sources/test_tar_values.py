from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.tars import write_tar

from avdata.sources.tar_source import open_tars
from avdata.sources.tar_values import MissingValueError, SampleValues, parse_field

MEMBERS = {
    "cls": b"3\n",
    "txt": "Ärger \n".encode(),
    "lines.txt": b"dog\r\n barks\n",
    "json": b'{"emotion": "anger", "meta": {"speaker": {"id": 7}, "ok": true}, "gap": null, "list": [1]}',
    "bad.json": b"{'a': 1}",
    "empty.txt": b" ",
    "latin.txt": b"\xc4rger",
}


@pytest.fixture
def values(tmp_path: Path) -> SampleValues:
    return SampleValues(open_tars(write_tar(tmp_path / "0000.tar", {"a/b": MEMBERS})).samples[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cls", "3"), ("txt", "Ärger"), ("lines.txt", "dog barks"), ("json:emotion", "anger"),
        ("json:meta.speaker.id", "7"),
        ("json:meta.ok", "true"), ("JSON:emotion", "anger"),
    ],
)  # fmt: skip
def test_read_returns_text_members_and_json_fields(values: SampleValues, text: str, expected: str) -> None:
    assert values.read(parse_field(text)) == expected


@pytest.mark.parametrize(
    ("text", "detail", "hint"),
    [
        ("wav", "Member wav missing in clip 'a/b' of 0000.tar", "Fields of the json: emotion, meta, gap"),
        ("json:emotio", "Field emotio missing in the json of clip 'a/b' of 0000.tar", "emotion, meta, gap"),
        ("json:meta.age", "Field meta.age missing", "Fields there: speaker, ok"),
        ("json:emotion.x", "Field emotion.x missing", "Fields there: none"),
        ("json:gap", "Field gap of the json is neither text nor an integer", "null"),
        ("json:list", "Field list of the json is neither text nor an integer", "[1]"),
        ("bad.json:a", "Invalid JSON in the bad.json", None),
        ("empty.txt", "empty.txt is neither text", None),
        ("latin.txt", "not UTF-8", None),
    ],
)
def test_read_names_what_is_missing(values: SampleValues, text: str, detail: str, hint: str | None) -> None:
    with pytest.raises(MissingValueError) as caught:
        values.read(parse_field(text))
    assert detail in caught.value.detail
    assert hint is None or hint in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "json", "cls:a", ":a", "json:", "json:a..b"])
def test_parse_field_rejects_other_forms(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_field(text)
