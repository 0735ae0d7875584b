"""BibTeX entries from the citation of a dataset."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

MAX_LENGTH = 4_000
"""Characters of a citation that are parsed: dataset.json may come from anywhere."""

_NEXT_WORK = re.compile(r";\s+|\.\s+(?=[A-Z]\w+: \w+ [A-Z]{1,3}[,.])")
"""Separator of several works; a work may have a prefix such as `lists:`."""

_NAME = re.compile(r"(?P<surname>[\w' -]+) (?P<initials>[A-Z]{1,4})")

_WORK = re.compile(
    r"(?:\w+: )?(?P<authors>[^.]+?)\. (?P<title>.+?)\."
    r" (?P<venue>(?!doi:|arXiv:)[^.]*?(?:19|20)\d\d[^.]*|(?=arXiv:))(?:\.? ?(?P<links>.*))?"
)

_VOLUME = re.compile(
    r"(?P<journal>.+?) (?P<volume>\d+)(?:\((?P<number>[\w-]+)\))?:(?P<pages>[\w-]+), (?P<year>\d{4})"
)

_CONFERENCE = re.compile(r"(?P<booktitle>.+?) (?P<year>\d{4})(?:, (?P<pages>[\d-]+))?")


class _Entry(NamedTuple):
    kind: str
    key: str
    fields: dict[str, str]


def bibtex(citation: str | None, *, name: str, title: str, homepage: str | None = None) -> str:
    """Return BibTeX entries, one for each work of a citation.

    A citation that is not of the form `Author A, Author B. Title. Venue 1(2):3-4, 2014. doi:…` becomes the
    note of one `@misc` entry.

    >>> print(bibtex("Cao H, Cooper DG. CREMA-D: Crowd-sourced. IEEE TAC 5(4):377-390, 2014. doi:10.1/2",
    ...              name="cremad", title="CREMA-D"))
    @article{cao2014crema,
      author = {Cao, H. and Cooper, D. G.},
      title = {{CREMA-D: Crowd-sourced}},
      journal = {IEEE TAC},
      volume = {5},
      number = {4},
      pages = {377--390},
      year = {2014},
      doi = {10.1/2}
    }

    Args:
        citation: `citation` of a manifest or of dataset.json.
        name: name of the dataset, the key of an `@misc` entry.
        title: title of the dataset.
        homepage: URL of the dataset.
    """
    works = _NEXT_WORK.split((citation or "")[:MAX_LENGTH])
    entries = [_parse_work(work) for work in works]
    known = [entry for entry in entries if entry is not None]
    if len(known) < len(entries):
        note = {"note": citation} if citation else {}
        link = {"url": homepage} if homepage else {}
        known = [_Entry("misc", name, {"title": f"{{{_plain(title)}}}", **note, **link})]
    return "\n\n".join(_format_entry(entry) for entry in known)


def _parse_work(work: str) -> _Entry | None:
    """Return the entry of one work, or None if it has another form."""
    match = _WORK.fullmatch(work.strip().rstrip("."))
    if match is None or (authors := _parse_authors(match["authors"])) is None:
        return None
    links, venue = match["links"] or "", match["venue"]
    kind, place = "misc", {}
    if volume := _VOLUME.fullmatch(venue):
        kind, place = "article", volume.groupdict()
    elif conference := _CONFERENCE.fullmatch(venue):
        kind, place = "inproceedings", conference.groupdict()
    fields = {"author": authors, "title": f"{{{_plain(match['title'])}}}"}
    fields |= {field: value for field, value in place.items() if value}
    if "pages" in fields:
        fields["pages"] = re.sub("-+", "--", fields["pages"])
    if doi := re.search(r"doi:(\S+)", links):
        fields["doi"] = doi[1]
    if arxiv := re.search(r"arXiv:(\S+)", links):
        fields |= {"eprint": arxiv[1], "archiveprefix": "arXiv"}
        # The first two digits of an identifier are the year of the submission.
        fields.setdefault("year", f"20{arxiv[1][:2]}")
    if "year" not in fields:
        return None
    surname = unicodedata.normalize("NFKD", authors.partition(",")[0].lower())
    word = re.search(r"\w{4,}", match["title"])
    return _Entry(kind, f"{surname}{fields['year']}{word[0].lower() if word else ''}", fields)


def _parse_authors(text: str) -> str | None:
    """Return authors as BibTeX separates them, or None if one has another form.

    >>> _parse_authors("Arandjelović R, Kay W et al")
    'Arandjelović, R. and Kay, W. and others'
    """
    text, others = re.subn(r" et al$", "", text)
    names = [_NAME.fullmatch(name) for name in text.split(", ")]
    if not all(names):
        return None
    authors = [f"{name['surname']}, {'. '.join(name['initials'])}." for name in names if name]
    return " and ".join([*authors, *["others"] * others])


def _plain(text: str) -> str:
    return re.sub(r"[{}\\]", "", text)


def _format_entry(entry: _Entry) -> str:
    kind, key, fields = entry
    lines = [f"  {field} = {{{_escape(field, value)}}}" for field, value in fields.items()]
    label = re.sub(r"[^A-Za-z0-9_-]", "", key)
    return f"@{kind}{{{label},\n" + ",\n".join(lines) + "\n}"


def _escape(field: str, value: str) -> str:
    """Escape the characters that have a meaning in TeX. Links are read verbatim."""
    if field in {"doi", "url", "eprint"}:
        return _plain(value)
    braced = value.startswith("{") and field == "title"
    text = re.sub(r"([&%$#_])", r"\\\1", _plain(value))
    return f"{{{text}}}" if braced else text
