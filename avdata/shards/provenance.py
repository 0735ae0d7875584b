"""Statement of how many source files of a dataset were verified, for the card, report and `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_verification(source: Mapping[str, Any]) -> str:
    """Return how many source files were verified during the preparation, and against what.

    >>> counts = {"verified": {"sha256": 14884}, "unverified": 0}
    >>> describe_verification({"checksums": "manifest", "files": counts})
    '14,884 of 14,884 source files were verified against the manifest (sha256).'

    Args:
        source: `source` of dataset.json.
    """
    if source["checksums"] == "off":
        return "The source files were not verified: checksums were off."
    generated, manifest = ("The source files were generated. ", "the mock's own manifest")
    if source["checksums"] != "mock":
        generated, manifest = "", "the manifest"
    sentences = [
        _describe(source[kind], f"source {kind}", manifest)
        for kind in ("files", "lists")
        if isinstance(source.get(kind), Mapping) and _total(source[kind])
    ]
    return generated + (" ".join(sentences) or "How many source files were verified was not recorded.")


def _total(counts: Mapping[str, Any]) -> int:
    return int(sum(counts["verified"].values()) + counts["unverified"])


def _describe(counts: Mapping[str, Any], what: str, manifest: str) -> str:
    total, unverified = _total(counts), counts["unverified"]
    algorithms = f" ({', '.join(counts['verified'])})" if counts["verified"] else ""
    rest = ""
    if unverified:
        rest = "; it does not list the others" if total > unverified else ", which lists none of them"
    return f"{total - unverified:,} of {total:,} {what} were verified against {manifest}{algorithms}{rest}."
