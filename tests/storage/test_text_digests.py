from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from avdata.storage import text_digests
from avdata.storage.place_index import PlaceIndex
from avdata.storage.text_digests import TextDigests, contains, digest_texts, shared_digests

TEXTS = some.lists(some.text(max_size=3), max_size=30)


@pytest.fixture(params=[False, True], ids=["in memory", "in parts of a file"])
def _few_in_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(text_digests, "_PART", 4)
        monkeypatch.setattr(text_digests, "_MEMORY_BYTES", 32)
        monkeypatch.setattr(text_digests, "_BLOCK_BYTES", 48)


SAME_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@SAME_FIXTURE
@given(TEXTS)
@pytest.mark.usefixtures("_few_in_memory")
def test_text_digests_counts_and_finds_repeated_texts(texts: list[str]) -> None:
    counts, digests = Counter(texts), TextDigests()
    digests.add(texts[:7])
    digests.add(texts[7:])
    assert (len(digests), digests.count()) == (len(texts), len(counts))
    found = contains(digests.repeated(), digest_texts(counts))
    assert dict(zip(counts, found, strict=True)) == {text: count > 1 for text, count in counts.items()}


@SAME_FIXTURE
@given(some.lists(TEXTS, max_size=3))
@pytest.mark.usefixtures("_few_in_memory")
def test_shared_digests_are_those_of_several_collections(collections: list[list[str]]) -> None:
    added = [TextDigests() for _ in collections]
    for digests, texts in zip(added, collections, strict=True):
        digests.add(texts)
    owners = Counter(text for texts in collections for text in set(texts))
    found = contains(shared_digests(added), digest_texts(owners))
    assert dict(zip(owners, found, strict=True)) == {text: count > 1 for text, count in owners.items()}


def test_place_index_finds_the_last_place_of_each_key() -> None:
    places, expected = PlaceIndex(), dict[str, int]()
    for place, number in enumerate(np.random.default_rng(0).integers(0, 30_000, 50_000).tolist()):
        places.add(f"k{number}", place)
        expected[f"k{number}"] = place
    assert {key: places.find(key) for key in expected} == expected
    assert places.find("absent") is None
