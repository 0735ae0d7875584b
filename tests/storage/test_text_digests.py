from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from avdata.storage.place_index import PlaceIndex
from avdata.storage.text_digests import TextDigests, contains, digest_texts, shared_digests

TEXTS = some.lists(some.text(max_size=3), max_size=30)


@given(TEXTS, some.integers(1, 5))
def test_text_digests_counts_and_finds_repeated_texts_in_parts(texts: list[str], parts: int) -> None:
    counts, different, repeated = Counter(texts), 0, set[str]()
    for part in range(parts):
        digests = TextDigests(part, parts)
        digests.add(texts[:7])
        digests.add(texts[7:])
        different += digests.count()
        repeated |= {text for text in counts if contains(digests.repeated(), digest_texts([text]))[0]}
    assert different == len(counts)
    assert repeated == {text for text, number in counts.items() if number > 1}


@given(some.lists(TEXTS, max_size=3))
def test_shared_digests_are_those_of_several_collections(collections: list[list[str]]) -> None:
    unique = []
    for texts in collections:
        digests = TextDigests()
        digests.add(texts)
        unique.append(digests.unique())
    owners = Counter(text for texts in collections for text in set(texts))
    found = contains(shared_digests(unique), digest_texts(owners))
    assert dict(zip(owners, found, strict=True)) == {text: count > 1 for text, count in owners.items()}


def test_place_index_finds_the_last_place_of_each_key() -> None:
    places, expected = PlaceIndex(), dict[str, int]()
    for place, number in enumerate(np.random.default_rng(0).integers(0, 30_000, 50_000).tolist()):
        places.add(f"k{number}", place)
        expected[f"k{number}"] = place
    assert {key: places.find(key) for key in expected} == expected
    assert places.find("absent") is None
