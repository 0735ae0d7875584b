from __future__ import annotations

from typing import Any

import pytest

from avdata.shards.provenance import describe_verification


def source(checksums: str, verified: dict[str, int], unverified: int = 0, **lists: Any) -> dict[str, Any]:
    return {"checksums": checksums, "files": {"verified": verified, "unverified": unverified}, **lists}


@pytest.mark.parametrize(
    ("facts", "statement"),
    [
        ({"checksums": "off"}, "The source files were not verified: checksums were off."),
        (
            source("manifest", {}, 106),
            "0 of 106 source files were verified against the manifest, which lists none of them.",
        ),
        (
            source("manifest", {"sha256": 7442}, 7442),
            "7,442 of 14,884 source files were verified against the manifest (sha256);"
            " it does not list the others.",
        ),
        (
            source("manifest", {"md5": 1, "sha256": 2}, lists={"verified": {"md5": 1}, "unverified": 0}),
            "3 of 3 source files were verified against the manifest (md5, sha256)."
            " 1 of 1 source lists were verified against the manifest (md5).",
        ),
        (
            source("mock", {"sha256": 4}),
            "The source files were generated."
            " 4 of 4 source files were verified against the mock's own manifest (sha256).",
        ),
        ({"checksums": "manifest"}, "How many source files were verified was not recorded."),
    ],
)
def test_describe_verification_states_only_what_was_verified(facts: dict[str, Any], statement: str) -> None:
    assert describe_verification(facts) == statement
