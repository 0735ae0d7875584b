from __future__ import annotations

import pytest

from avdata.manifest import load_manifest
from avdata.recipe import recipe_names
from avdata.shards.citation import bibtex

WORKS = {
    "ave": ["@inproceedings{tian2018audio,"],
    "cremad": ["@article{cao2014crema,"],
    "grid": ["@article{cooke2006audio,"],
    "kinetics-sounds": [
        "@inproceedings{arandjelovic2017look,", "@misc{kay2017kinetics,", "@inproceedings{peng2022balanced,",
    ],
    "ravdess": ["@article{livingstone2018ryerson,"],
    "synthetic": ["@misc{synthetic,"],
    "urbansound8k": ["@inproceedings{salamon2014dataset,"],
    "urbansound8k-av": ["@article{guo2024transformer,", "@inproceedings{salamon2014dataset,"],
    "vggsound": ["@inproceedings{chen2020vggsound,"],
    "webdataset": ["@misc{webdataset,"],
}  # fmt: skip


def test_bibtex_has_an_entry_for_each_work_of_each_bundled_citation() -> None:
    for name in recipe_names():
        manifest = load_manifest(name)
        text = bibtex(manifest.citation, name=name, title=manifest.title, homepage=manifest.homepage)
        assert [line for line in text.splitlines() if line.startswith("@")] == WORKS[name]


def test_bibtex_has_the_fields_of_the_published_entry() -> None:
    text = bibtex(load_manifest("cremad").citation, name="cremad", title="CREMA-D")
    for field in (
        "author = {Cao, H. and Cooper, D. G. and Keutmann, M. K. and Gur, R. C. and Nenkova, A. and",
        "journal = {IEEE Transactions on Affective Computing}", "volume = {5}", "number = {4}",
        "pages = {377--390}", "year = {2014}", "doi = {10.1109/TAFFC.2014.2336244}",
    ):  # fmt: skip
        assert field in text


@pytest.mark.parametrize("citation", [None, "", "Me & you, 100 %", "{}}\\end{document} A. B. 2020"])
def test_bibtex_of_any_other_text_is_one_balanced_note(citation: str | None) -> None:
    text = bibtex(citation, name="a}b", title="T{%")
    assert text.startswith("@misc{ab,")
    assert text.count("{") == text.count("}")
    assert "\\end" not in text
    assert "title = {{T\\%}}" in text
