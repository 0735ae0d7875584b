"""No value of a dataset changes the structure of the report page, the card or the Croissant description."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avdata.reporting.html import render
from avdata.reporting.report import collect_page_data
from avdata.shards.card import dataset_card
from avdata.shards.croissant import croissant
from avdata.shards.dataset_files import open_dataset_files
from avdata.shards.reader import read_info

HOSTILE = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "</title><h1>",
    "javascript:alert(1)", "{{ 7 * 7 }}{% raw %}", "<!-- -->", "&lt;b&gt;", "]]>",
    "\x1b]0;x\x07\x00\r\n| # x",
    "---\nlicense: mit\n---", "!!python/object/apply:os.system ['true']", "*anchor", "\u202egpj.exe\u2066",
    '", "@id": "x', "\\u0000",
)  # fmt: skip

values = st.text(
    st.sampled_from("<>\"'&/=`{}%#-!|[]()\\\n\r\t\x00\x1b\u202e:; ab") | st.characters(codec="utf-8"),
    min_size=1,
)


def with_value(info: dict[str, Any], value: str) -> dict[str, Any]:
    """Return a dataset.json with a value at each place of free text."""
    changed = copy.deepcopy(info)
    old = changed["labels"][0]
    changed["labels"][0] = value
    for split in changed["splits"].values():
        split["labels"] = {value if name == old else name: number for name, number in split["labels"].items()}
    changed.update(title=value, citation=value, ethics=value, machine=value, background=value, split_by=value)
    changed["tools"] = {value: value}
    changed["license"].update(id="other", name=value, note=value, link=value)
    changed["source"].update(homepage=value, commit=value)
    for source in changed["source"]["sources"]:
        source.update(name=value, urls=[value], checksum=value)
    return changed


class Structure(HTMLParser):
    """Tags with the names of their attributes, and the values of those that can run code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # A long label has a class of its own.
        self.tags.append((tag, tuple(name for name, _ in attrs if name != "class")))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", ()))


@pytest.fixture(scope="module")
def context(cremad_set: Path) -> dict[str, Any]:
    return collect_page_data(
        open_dataset_files(cremad_set), None, source=None, seed=0, progress=lambda stage, done, total: None
    )


def page_of(context: dict[str, Any], value: str) -> str:
    """Return the page of a dataset whose texts are all the value."""
    info = with_value(context["info"], value)
    card = context["cards"][0]
    row = {**card.row, "key": value, "label_name": value, "group": value, "flags": [value]}
    metadata = {**card.metadata, "extras": {value: value}, "label_name": value}
    statistics = replace(context["statistics"], largest_groups={"train": (value, 3)})
    quarantined = {"key": value, "reason": value, "detail": value, "kept": value}
    return render(
        "dataset.html",
        **{
            **context, "info": {**info, "quarantine": {value: 1}}, "root": value, "statistics": statistics,
            "cards": [replace(card, row=row, metadata=metadata)], "problems": [value],
            "verification": value, "flags": [(value, 1, value)], "settings": [(value, value)],
            "quarantine": {"rows": [quarantined], "total": 1, "reasons": {value: (value, value)}},
        },
    )  # fmt: skip


Tags = list[tuple[str, tuple[str, ...]]]


@pytest.fixture(scope="module")
def plain_tags(context: dict[str, Any]) -> Tags:
    return Structure(page_of(context, "x")).tags


@settings(max_examples=6)  # to render the page takes 0.1 s
@given(value=values)
@example(value=" ".join(HOSTILE))
@example(value="javascript:alert(1)")
def test_page_has_the_same_structure_for_any_value(
    value: str, context: dict[str, Any], plain_tags: Tags
) -> None:
    page = Structure(page_of(context, value.strip() or "x"))
    assert page.tags == plain_tags
    assert all(link.startswith(("#", "data:image/", "data:audio/", "data:,")) for link in page.links)


def shape_of(document: Any) -> Any:
    """Return the names and types of a JSON document, without its texts."""
    if isinstance(document, dict):
        return {name: shape_of(item) for name, item in document.items()}
    return list(map(shape_of, document)) if isinstance(document, list) else type(document)


@given(value=values)
@example(value='https://example.org/"><script>')
def test_croissant_holds_any_value_as_text(value: str, cremad_set: Path) -> None:
    info = read_info(cremad_set)
    plain, document = (json.loads(croissant(with_value(info, text), "0" * 64)) for text in ("x", value))
    is_link = value.startswith(("http://", "https://"))
    document.pop("url", None)
    plain.pop("url", None)
    assert shape_of(document) == shape_of(plain)
    assert document["citeAs"] == value
    assert document["recordSet"][1]["data"][0]["labels/name"] == value
    assert is_link or document["license"] == value


@settings(max_examples=10)
@given(value=values)
@example(value=HOSTILE[9])
@example(value=HOSTILE[10])
@example(value=HOSTILE[11])
def test_card_header_is_plain_yaml_for_any_value(value: str, cremad_set: Path) -> None:
    info = read_info(cremad_set)
    info = with_value({**info, "source": {**info["source"], "checksums": "manifest"}}, value)
    text = dataset_card(info)
    header = text.split("\n---\n")[0].removeprefix("---\n")
    data = yaml.safe_load(header)  # loads no object
    assert data.keys() - {"license_link"} == yaml.safe_load(_plain_header(cremad_set)).keys()
    assert DatasetCard(text).data.to_dict()["license_name"] == data["license_name"]


def _plain_header(root: Path) -> str:
    info = read_info(root)
    plain = with_value({**info, "source": {**info["source"], "checksums": "manifest"}}, "x")
    return dataset_card(plain).split("\n---\n")[0].removeprefix("---\n")
